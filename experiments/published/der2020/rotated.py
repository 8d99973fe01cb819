"""Rotated MNIST, to the protocol of Buzzega et al. (2020); the number behind a method is its buffer's.

Run:    python scripts/reproduce.py der2020/rotated --seeds 3 --methods SGD ER-200 DER++-200
Angles: uniform in [0, 180) degrees.
"""

import functools

from bptoolkit import continual as cl
from bptoolkit import data
from experiments.published import der
from experiments.published.der import Row

ROWS = {
    "SGD": Row(67.66, rate=0.2),
    "Joint": Row(95.76),
    "online EWC": Row(77.35),
    "SI": Row(71.91),
    "ER-200": Row(85.01, rate=0.2, capacity=200),
    "DER-200": Row(90.04, rate=0.2, capacity=200, alpha=1.0),
    "DER++-200": Row(90.43, rate=0.1, capacity=200, alpha=1.0, beta=0.5),
    "ER-500": Row(88.91, rate=0.2, capacity=500),
    "DER-500": Row(92.24, rate=0.2, capacity=500, alpha=0.5),
    "DER++-500": Row(92.77, rate=0.2, capacity=500, alpha=0.5, beta=1.0),
}

stream = functools.cache(lambda: cl.rotated(data.mnist(), der.TASKS, interpolation="nearest"))

TABLE = der.table("Rotated MNIST, 20 tasks, domain-incremental: accuracy in %", ROWS, stream)
