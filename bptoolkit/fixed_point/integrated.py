"""Continuous relaxation dz/dt = f(z) − z by an adaptive integrator of Diffrax, which is an extra of this package.

What is integrated is the way from z in units of the residual, y = (z(t) − z)/‖z − f(z)‖, so that the integrator's
tolerance is relative to the way still to go: relative to the state, it would let unstable steps pass near the end.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bptoolkit import trees
from bptoolkit.fixed_point.sizes import norm
from bptoolkit.fixed_point.solvers import Solver
from bptoolkit.fixed_point.stability import coordinates
from bptoolkit.types import PyTree

__all__ = ["integrated"]


def integrated(method: Any = None, *, span: float = 1.0, rtol: float = 1e-2, max_steps: int = 256) -> Solver:
    """Follow dz/dt = f(z) − z for a time `span` in each step, by a Diffrax solver that chooses its own step lengths.

    Converges near z* where Re λ(∂f/∂z) < 1, also where `picard()` diverges: error falls by exp(−span · Re(1 − λ)) a
    step.  One step costs several evaluations of f, which `Solution.steps` does not count.  Complex states are
    integrated in real and imaginary parts.

    Args:
        method: a `diffrax` solver; `Tsit5()` if left out, `Kvaerno3()` for stiff networks.
        span: time that one step covers, in units of the time constant.
        rtol: local error in units of the residual at the start of the span.
        max_steps: of the integrator within one span; a span that needs more ends as NONFINITE.

    Raises:
        ImportError: Diffrax is not installed.
        ValueError: span not positive.

    Reference: Kidger (2021), "On neural differential equations", chapter 5.
    """
    if find_spec("diffrax") is None:
        raise ImportError("integrated needs Diffrax, which is not installed. Run: pip install 'bptoolkit[diffrax]'")
    if not span > 0:
        raise ValueError(f"span must be positive, got {span}. Take 1, one time constant.")
    diffrax = import_module("diffrax")
    solver = diffrax.Tsit5() if method is None else method
    control = diffrax.PIDController(rtol=rtol, atol=rtol)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, f: Any = None, **extra
    ) -> tuple[PyTree, PyTree]:
        del extra  # optax's names: the residual, nothing, and z
        size = jnp.maximum(norm(updates), jnp.finfo(norm(updates).dtype).tiny)
        split = coordinates if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(params)) else _as_it_is
        origin, joined = split(params)
        at = lambda y: trees.add(origin, trees.scale(size, y))
        moving = lambda y: trees.subtract(split(f(joined(at(y))))[0], at(y))
        flow = diffrax.ODETerm(lambda t, y, args: trees.scale(1 / size, moving(y)))
        start, end = jnp.zeros_like(size), jnp.full_like(size, span)
        options = {"stepsize_controller": control, "max_steps": max_steps, "throw": False}
        path = diffrax.diffeqsolve(flow, solver, start, end, None, trees.zeros_like(origin), **options)
        reached = path.result == diffrax.RESULTS.successful
        moved = joined(trees.scale(size, jax.tree.map(lambda y: y[-1], path.ys)))
        return jax.tree.map(lambda m: jnp.where(reached, m, jnp.full_like(m, jnp.nan)), moved), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _as_it_is(z: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    return z, lambda parts: parts
