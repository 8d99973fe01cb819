"""Does a net know what it does not know?  Expected calibration error, and the score of its probabilities.

    ECE = Σ_bins (rows in bin / rows) · |accuracy in bin − mean confidence in bin|,     confidence = largest p

Reference: Guo et al. (2017), ICML; Brier (1950), Monthly Weather Review 78.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.counts import check_whole
from bptoolkit.learning.losses import correct, probabilities
from bptoolkit.types import Batch

__all__ = ["brier_score", "calibration_error"]


def calibration_error(logits: Float[Array, "b k"], batch: Batch, bins: int = 15) -> Float[Array, ""]:
    """ECE over the rows that have weight, in bins of equal width; 0 is perfect, NaN without rows.

    Raises:
        ValueError: less than one bin.
    """
    check_whole(bins=bins)
    p = jax.vmap(probabilities)(logits, batch.active, batch.temperature)
    confidence = jnp.max(p, axis=1)
    right = jax.vmap(correct)(logits, batch.target, batch.active).astype(p.dtype)
    counts = batch.weight > 0
    place = jnp.minimum((confidence * bins).astype(jnp.int32), bins - 1)
    gap = jax.ops.segment_sum(jnp.where(counts, right - confidence, 0), jnp.where(counts, place, 0), num_segments=bins)
    return jnp.sum(jnp.abs(gap)) / jnp.sum(counts, dtype=p.dtype)


def brier_score(logits: Float[Array, "b k"], batch: Batch) -> Float[Array, ""]:
    """Mean over rows of Σ_i (p_i − t_i)², over the active outputs; in [0, 2]."""
    p = jax.vmap(probabilities)(logits, batch.active, batch.temperature)
    miss = jnp.sum(jnp.square(jnp.where(batch.active, p - batch.target.astype(p.dtype), 0)), axis=1)
    counts = batch.weight > 0
    return jnp.sum(jnp.where(counts, miss, 0)) / jnp.sum(counts, dtype=p.dtype)
