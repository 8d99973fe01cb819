"""What a relaxation is given: when to end, and what is refused of the rest."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bptoolkit.counts import check_whole, fails, is_number
from bptoolkit.types import State

__all__ = ["Stop"]


class Stop(NamedTuple):
    """When to end.  All three may be traced; changing a value does not compile again.

    rtol: bound on the estimated relative error; None takes what the dtype can honour (float32 1e-4, float64 1e-8).
    atol: absolute bound, added; needed only where the fixed point may be zero.
    max_steps: updates allowed; f is evaluated once more than that, and twice more from a start at rounding.
    """

    rtol: float | Float[Array, ""] | None = None
    atol: float | Float[Array, ""] = 0.0
    max_steps: int | Int[Array, ""] = 1000


def check_stop(stop: Stop) -> None:
    """Raise unless it is a `Stop` whose written numbers can end a relaxation."""
    if not isinstance(stop, Stop):
        raise ValueError(f"stop must be a Stop, got {stop!r}. Write for example Stop(rtol=1e-5, max_steps=500).")
    given: Any = stop._replace(rtol=0.0) if stop.rtol is None else stop
    for name, bound in zip(Stop._fields, given, strict=True):
        if not is_number(bound):
            raise ValueError(f"{name} must be a number, got {bound!r}.")
        if jnp.shape(bound) != ():
            raise ValueError(f"{name} must be one number, got shape {jnp.shape(bound)}. For one each, vmap over it.")
        if fails(lambda number: number >= 0, bound):
            raise ValueError(f"{name} must be at least 0, got {bound}. Leave rtol out for what the dtype can honour.")
    whole = lambda number: number.dtype != bool and number < 2**31 and number % 1 == 0
    if fails(whole, stop.max_steps):
        raise ValueError(f"max_steps must be a whole number below 2³¹, got {stop.max_steps}.")


def takes(function: Any, *keywords: str) -> bool:
    """Whether something is a function that may be given all these arguments by name."""
    told = inspect.signature(function).parameters.values() if callable(function) else ()
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in told)
    return any_name or set(keywords) <= {parameter.name for parameter in told}


def check_extra(extra: dict) -> None:
    """Raise where what belongs into `stop` stands beside it: solvers pass over arguments that they do not know."""
    for name in (*Stop._fields, "tol"):
        if name in extra:
            told = "rtol" if name == "tol" else name
            raise ValueError(f"{name} belongs into stop, got it beside. Write stop=Stop({told}={extra[name]!r}).")


def check_counts(every: int, compact: int | None) -> None:
    """Raise unless there are steps between judgements, and samples in the smallest batch."""
    check_whole(1, "Take 1 to judge each step.", every=every)
    check_whole(1, "Leave it out for no compaction.", compact=compact)


def check_map(f: Callable[[State], State], z0: State) -> None:
    """Raise unless f maps the state onto its own shapes and dtypes."""
    if not jax.tree.leaves(z0):
        raise ValueError("z0 must hold at least one array, got an empty tree. Give the state to start from.")
    for leaf in jax.tree.leaves(z0):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(f"z0 must be floating, got {jnp.result_type(leaf)}. Cast it, e.g. to float32.")
    describe = lambda tree: jax.tree.map(lambda x: (tuple(jnp.shape(x)), str(jnp.result_type(x))), tree)
    given, returned = describe(z0), describe(jax.eval_shape(f, z0))
    if given != returned:
        raise ValueError(
            f"f must return a state of the shapes and dtypes it was given: {given}, got {returned}.\n"
            "Return one value per unit, for example tanh(z @ w + b) with w of shape (units, units)."
        )


def as_arrays(z: State) -> State:
    """The state with numbers in it made arrays."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), z)
