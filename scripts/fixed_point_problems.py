"""Networks z = tanh(W z + x) of known difficulty, a loss, and the exact gradient in float64 by elimination."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """A batch of networks that share W: z_i = tanh(W z_i + x_i), loss Σ_i c·z_i."""

    w: np.ndarray  # (n, n)
    x: np.ndarray  # (batch, n)
    c: np.ndarray  # (n,)
    gradient: np.ndarray  # ∂loss/∂W, float64
    radius: float  # largest |eigenvalue| of ∂f/∂z over the first samples


def disc(n: int, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Eigenvalues that fill a disc of radius `gain`."""
    return rng.normal(size=(n, n)) * gain / np.sqrt(n)


def interval(n: int, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Symmetric, eigenvalues evenly spread over ±gain."""
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return q @ np.diag(np.linspace(-gain, gain, n)) @ q.T


def outliers(n: int, gain: float, rng: np.random.Generator) -> np.ndarray:
    """A disc of radius 0.3, and three symmetric outliers near `gain`."""
    q = np.linalg.qr(rng.normal(size=(n, 3)))[0]
    return disc(n, 0.3, rng) + q @ np.diag(gain * np.array([1.0, 0.97, 0.94])) @ q.T


def make(kind: Callable, gain: float, batch: int, n: int, drive: float | tuple[float, float] = 0.1) -> Problem:
    """A problem; a small drive keeps tanh steep, so that ρ(∂f/∂z) stays near the gain.  A pair spreads difficulty."""
    rng = np.random.default_rng(0)
    w = kind(n, gain, rng)
    low, high = drive if isinstance(drive, tuple) else (drive, drive)
    x = rng.normal(size=(batch, n)) * np.geomspace(low, high, batch)[:, None]
    c = rng.normal(size=n)
    single = lambda a: a.astype(np.float32).astype(float)  # the libraries get float32
    w, x, c = single(w), single(x), single(c)
    z = np.zeros_like(x)
    for _ in range(20_000):
        z, before = np.tanh(z @ w.T + x), z
        if np.max(np.abs(z - before)) < 1e-14:
            break
    slope = 1 - z**2
    rows = [np.linalg.solve(np.eye(n) - (s[:, None] * w).T, c) for s in slope]
    radius = max(np.abs(np.linalg.eigvals(s[:, None] * w)).max() for s in slope[:: max(1, batch // 4)])
    return Problem(w, x, c, (slope * np.stack(rows)).T @ z, float(radius))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "easy": lambda: make(disc, 0.5, 128, 256),
    "hard": lambda: make(disc, 0.95, 128, 256, drive=0.05),
    "symmetric": lambda: make(interval, 0.98, 128, 256, drive=0.02),
    "outliers": lambda: make(outliers, 0.98, 128, 256, drive=0.02),
    "spread": lambda: make(disc, 0.95, 128, 256, drive=(0.01, 3.0)),
    "wide": lambda: make(disc, 0.9, 32, 1024),
    "tiny": lambda: make(disc, 0.9, 4096, 8),
}
