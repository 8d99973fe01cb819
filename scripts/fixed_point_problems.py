"""Networks z = f(W, z, x) of known difficulty, a loss, and the exact gradient in float64 by elimination.

All are z = tanh(A z + x) with a matrix A that is W itself (`dense`) or holds each entry of a convolution's kernel W
many times (`convolutional`); the reference knows only A.  Each is told to JAX, for one sample and for a batch, and to
PyTorch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bptoolkit import data, learning, models
from bptoolkit.types import Dataset


class Problem(NamedTuple):
    """A batch of networks that share W: z_i = f(W, z_i, x_i), loss Σ_i ⟨c, z_i⟩."""

    w: np.ndarray  # (n, n), or a kernel
    x: np.ndarray  # (batch, *state)
    c: np.ndarray  # (*state,)
    gradient: np.ndarray  # ∂loss/∂W, float64
    radius: float  # largest |eigenvalue| of ∂f/∂z over a few samples
    step: Callable  # (w, z, x) -> f, for one sample
    batched: Callable  # (w, z, x) -> f, for a batch
    linear: Callable  # (w, z) -> A z, for a batch
    by_torch: Callable  # (w, z, x) -> f, for a batch of tensors


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
    """A random net; a small drive keeps tanh steep, and ρ(∂f/∂z) near the gain.  A pair spreads difficulty."""
    rng = np.random.default_rng(0)
    w = kind(n, gain, rng)
    low, high = drive if isinstance(drive, tuple) else (drive, drive)
    x = rng.normal(size=(batch, n)) * np.geomspace(low, high, batch)[:, None]
    return dense(w, x, rng.normal(size=n))


def dense(w: np.ndarray, x: np.ndarray, c: np.ndarray) -> Problem:
    """z = tanh(W z + x)."""
    w, x, c = single(w), single(x), single(c)
    gradient, radius = solved(w, x, c)

    def by_torch(w, z, x):
        return (z @ w.T + x).tanh()

    return Problem(
        w,
        x,
        c,
        gradient,
        radius,
        step=lambda w, z, x: jnp.tanh(w @ z + x),
        batched=lambda w, z, x: jnp.tanh(z @ w.T + x),
        linear=lambda w, z: z @ w.T,
        by_torch=by_torch,
    )


def convolutional(side: int, channels: int, batch: int, gain: float) -> Problem:
    """A `conv_cell` of 3 × 3 windows, wider than its bound allows by `gain`, driven by noise."""
    cell = models.conv_cell((side, side), channels, 1)
    rng = np.random.default_rng(0)
    w = single(gain * rng.normal(size=(3, 3, channels, channels)) / np.sqrt(9 * channels))
    x = single(0.1 * rng.normal(size=(batch, side, side, channels)))
    c = single(rng.normal(size=x.shape[1:]))
    tied = kernel_entries(side, channels)
    full = np.where(tied < 0, 0.0, w.ravel()[tied])
    by_matrix, radius = solved(full, x.reshape(batch, -1), c.ravel())
    gradient = np.bincount(tied[tied >= 0], by_matrix[tied >= 0], minlength=w.size).reshape(w.shape)
    respond = cell.respond
    assert respond is not None
    step = lambda w, z, x: respond({"w": w}, x, z)

    def linear(w, z):
        return jax.lax.conv_general_dilated(z, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def by_torch(w, z, x):
        import torch  # pyright: ignore[reportMissingImports]

        swept = torch.nn.functional.conv2d(z.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), padding=1)
        return (swept.permute(0, 2, 3, 1) + x).tanh()

    return Problem(w, x, c, gradient, radius, step, lambda w, z, x: jnp.tanh(linear(w, z) + x), linear, by_torch)


def kernel_entries(side: int, channels: int) -> np.ndarray:
    """Which entry of the flat (3, 3, channels, channels) kernel leads from state j to state i; −1 where none does."""
    row, column, channel = (a.ravel() for a in np.meshgrid(*map(np.arange, (side, side, channels)), indexing="ij"))
    down, right = (a[None, :] - a[:, None] + 1 for a in (row, column))
    near = (down >= 0) & (down <= 2) & (right >= 0) & (right <= 2)
    return np.where(near, ((down * 3 + right) * channels + channel[None, :]) * channels + channel[:, None], -1)


def trained(units: int, batch: int, steps: int) -> Problem:
    """A rate cell trained on the digits for `steps` updates of Adam, from a gain of 0.9; its own images drive it."""
    cell = models.rate_cell(64, units, 10, gain=0.9)
    digits = data.digits()
    learner = learning.backprop(models.equilibrium(cell))
    params: Any = learning.fit(learner, digits, optax.adam(1e-2), jax.random.key(0), steps=steps, batch=64).params
    x = images(digits, batch) @ np.asarray(params["u"]) + np.asarray(params["b"])
    return dense(np.asarray(params["w"]).T, x, np.asarray(params["v"])[:, 0])


def images(dataset: Dataset, count: int) -> np.ndarray:
    """The first test images, flat."""
    return np.asarray(dataset.test.x[:count]).reshape(count, -1)


def single(a: np.ndarray) -> np.ndarray:
    """Values that float32 holds exactly: the libraries get float32."""
    return np.asarray(a, np.float32).astype(float)


def solved(a: np.ndarray, x: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, float]:
    """∂/∂A of Σ_i ⟨c, z_i⟩ at z_i = tanh(A z_i + x_i), one elimination a sample; and the largest |eigenvalue|."""
    z = np.zeros_like(x)
    for _ in range(20_000):
        z, before = np.tanh(z @ a.T + x), z
        if np.max(np.abs(z - before)) < 1e-14:
            break
    slope = 1 - z**2
    rows = [np.linalg.solve(np.eye(len(a)) - (s[:, None] * a).T, c) for s in slope]
    radius = max(np.abs(np.linalg.eigvals(s[:, None] * a)).max() for s in slope[:: max(1, len(x) // 4)])
    return (slope * np.stack(rows)).T @ z, float(radius)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "easy": lambda: make(disc, 0.5, 128, 256),
    "hard": lambda: make(disc, 0.95, 128, 256, drive=0.05),
    "symmetric": lambda: make(interval, 0.98, 128, 256, drive=0.02),
    "outliers": lambda: make(outliers, 0.98, 128, 256, drive=0.02),
    "spread": lambda: make(disc, 0.95, 128, 256, drive=(0.01, 3.0)),
    "wide": lambda: make(disc, 0.9, 32, 1024),
    "tiny": lambda: make(disc, 0.9, 4096, 8),
    "convolutional": lambda: convolutional(8, 8, 64, 0.75),
    "trained": lambda: trained(128, 128, 150),
}
