"""MNIST permutations, to the protocol of Lopez-Paz & Ranzato (2017).

Run:    python scripts/reproduce.py gem2017/permutations --seeds 1
"""

import functools

from bptoolkit import continual as cl
from bptoolkit import data
from experiments.published import gem

PUBLISHED = {
    "single": (0.602, -0.198, 0.009),
    "EWC": (0.619, -0.165, 0.005),
    "multimodal": (0.756, -0.028, 0.006),
    "GEM": (0.826, 0.025, 0.009),
}
RATES = {"single": 0.03, "EWC": 0.1, "multimodal": 0.1, "GEM": 0.1}
EWC = gem.Penalised(strength=3.0, rows=10)

stream = functools.cache(lambda: cl.online(cl.permuted(data.mnist(), gem.TASKS), gem.ROWS))

TABLE = gem.table(
    "MNIST permutations, 20 tasks: accuracy and transfer",
    PUBLISHED,
    lambda method, scenario: gem.experiment(stream(), method, RATES, EWC),
)
