"""A first relaxation in a narrower dtype, from whose end the one in the state's own dtype starts.

Steps in float32 cost about half of those in float64, steps in bfloat16 or float16 less again where the hardware
multiplies them: only the last digits are settled in the wide dtype.  The fixed point and its certificate are the wide
map's, so the narrow relaxation can be as rough as it likes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from bptoolkit import trees
from bptoolkit.fixed_point.arguments import Stop
from bptoolkit.fixed_point.sizes import norm
from bptoolkit.fixed_point.solve import Solution, Status, settled_dtypes
from bptoolkit.types import PyTree, State

__all__ = ["narrowed", "settled_narrowly"]


def settled_narrowly(
    f: Callable, args: PyTree, z0: State, dtype: DTypeLike, stop: Stop, run: Callable[[Callable, State, Stop], Solution]
) -> tuple[State, Int[Array, ""]]:
    """Where z = f(args, z) ends in the narrow dtype, in the dtypes of z0, and the steps made; z0 where it is lost.

    Args:
        f: map (args, z) -> z, which computes in the dtype of what it is given.  What it closes over is not narrowed.
        args, z0: in their own dtypes; every floating and complex leaf is cast.
        dtype: real, such as `jnp.float32`; complex leaves become complex with parts of it.
        stop: of the whole; its rtol is widened to what the narrow dtype can honour.
        run: (map, state, stop) -> Solution.
    """
    args, start = lax.stop_gradient((narrowed(args, dtype), narrowed(z0, dtype)))
    traced, captured = jax.closure_convert(f, args, start)
    captured = lax.stop_gradient(captured)
    rtol = jnp.maximum(settled_dtypes(Stop(), start).rtol, settled_dtypes(stop, start).rtol)
    ended = run(lambda z: traced(args, z, *captured), start, stop._replace(rtol=rtol))
    lost = (ended.status == Status.NONFINITE) | (ended.status == Status.DIVERGED) | ~jnp.isfinite(norm(ended.value))
    back = jax.tree.map(lambda new, old: new.astype(old.dtype), ended.value, z0)
    return trees.choose(lost, z0, back), ended.steps


def narrowed(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """Floating leaves in `dtype`, complex ones with parts of it; all others as they are.

    Raises:
        ValueError: a dtype that is not real and floating, or a complex leaf that has no parts of that dtype.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"A narrow dtype must be real and floating, got {jnp.dtype(dtype)}. Take jnp.float32.")

    def cast(leaf):
        kind = jnp.result_type(leaf)
        if jnp.issubdtype(kind, jnp.complexfloating):
            if jnp.finfo(dtype).bits < 32:
                raise ValueError(f"A complex state has parts of float32 or wider, got {jnp.dtype(dtype)}.")
            return jnp.asarray(leaf).astype(jnp.complex64 if jnp.finfo(dtype).bits == 32 else jnp.complex128)
        return jnp.asarray(leaf).astype(dtype) if jnp.issubdtype(kind, jnp.floating) else leaf

    return jax.tree.map(cast, tree)
