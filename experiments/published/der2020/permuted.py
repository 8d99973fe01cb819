"""Permuted MNIST, to the protocol of Buzzega et al. (2020); the number behind a method is its buffer's.

Run:    python scripts/reproduce.py der2020/permuted --seeds 3 --methods SGD ER-200 DER++-200
"""

import functools

from bptoolkit import continual as cl
from bptoolkit import data
from experiments.published import der
from experiments.published.der import Row

ROWS = {
    "SGD": Row(40.70, rate=0.2),
    "Joint": Row(94.33),
    "online EWC": Row(75.79),
    "SI": Row(65.86),
    "ER-200": Row(72.37, rate=0.2, capacity=200),
    "DER-200": Row(81.74, rate=0.2, capacity=200, alpha=1.0),
    "DER++-200": Row(83.58, rate=0.1, capacity=200, alpha=1.0, beta=1.0),
    "ER-500": Row(80.60, rate=0.2, capacity=500),
    "DER-500": Row(87.29, rate=0.2, capacity=500, alpha=1.0),
    "DER++-500": Row(88.21, rate=0.2, capacity=500, alpha=1.0, beta=0.5),
}

stream = functools.cache(lambda: cl.permuted(data.mnist(), der.TASKS))

TABLE = der.table("Permuted MNIST, 20 tasks, domain-incremental: accuracy in %", ROWS, stream)
