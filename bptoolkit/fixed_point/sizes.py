"""How large a state is, and what its dtypes can honour."""

from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bptoolkit.types import State

__all__ = ["norm"]

SHORT = 32  # numbers whose sums, one for each sample of a batch, would not fill the vectors of a CPU


def norm(tree: State) -> Float[Array, ""]:
    """Euclidean norm of the whole tree, in float32 or wider; carries no gradient."""
    sums = [_summed(_squared(lax.stop_gradient(x))).astype(judging_dtype(tree)) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(reduce(jnp.add, sums))


def _squared(x: Array) -> Float[Array, "..."]:
    return jnp.square((jnp.abs(x) if jnp.iscomplexobj(x) else x).astype(real_dtype(x)))


def _summed(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The sum; of few numbers as a product with ones, which a batch makes in one call, and a CPU in vectors."""
    if x.size > SHORT:
        return jnp.sum(x)
    return jnp.matmul(x.ravel(), jnp.ones(x.size, x.dtype), precision=lax.Precision.HIGHEST)


def real_dtype(x) -> jnp.dtype:
    """The real dtype, float32 or wider, in which the size of x is summed."""
    info = jnp.finfo(jnp.result_type(x))
    return info.dtype if info.bits >= 32 else jnp.dtype(jnp.float32)


def judging_dtype(z: State) -> jnp.dtype:
    """The dtype of norms and tolerances: the widest of the state's real dtypes."""
    return max((real_dtype(x) for x in jax.tree.leaves(z)), key=lambda d: jnp.finfo(d).bits)


def coarsest(z: State):
    """What is known of the coarsest dtype of the state."""
    return max((jnp.finfo(jnp.result_type(x)) for x in jax.tree.leaves(z)), key=lambda info: info.eps)


def level(z: State) -> float:
    """The relative residual from which on rounding has its part; below one hundredth, or eight units of rounding."""
    eps = float(coarsest(z).eps)
    return min(128 * eps, max(8 * eps, 0.01))


def honoured(z: State) -> float:
    """The relative error that the coarsest dtype of the state can honour: float32 1e-4, float64 1e-8."""
    return {64: 1e-8, 32: 1e-4}.get(coarsest(z).bits, 5e-2)
