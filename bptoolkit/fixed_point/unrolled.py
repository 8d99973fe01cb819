"""Backpropagation through time: relax z = f(args, z) for a given number of steps and differentiate through them.

Through K plain steps from z₀, with J_k = ∂f/∂z at z_k, the gradient is

    ∂L/∂args = Σ_k (∂f/∂args)ᵀ at z_k · λ_k,      λ_{K−1} = ∂L/∂z_K,      λ_{k−1} = J_kᵀ λ_k.

At a fixed point this is the Neumann series of the adjoint: K steps give λ up to (Jᵀ)^(K−1) g, as
`neumann(K − 1)` does.
"""

from functools import partial
from math import ceil, sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bptoolkit import trees
from bptoolkit.counts import check_whole
from bptoolkit.fixed_point.arguments import Stop, as_arrays, check_map
from bptoolkit.fixed_point.relax import Map, Probe, Relaxation
from bptoolkit.fixed_point.solve import RUNNING, Path, Solution, Status, advance, begin, report, settled_dtypes
from bptoolkit.fixed_point.solvers import Solver, settled_solver
from bptoolkit.types import PyTree, State

__all__ = ["BiasedRelaxation", "unrolled"]


class BiasedRelaxation(NamedTuple):
    """A relaxation whose gradient by design is not that of the value it returns."""

    relax: Relaxation

    def __call__(self, f: Map, args: PyTree, z0: State, **options) -> Solution:
        """The settled state; see `implicit` for the options."""
        return self.relax(f, args, z0, **options)


def unrolled(
    steps: int, solver: Solver | None = None, *, truncate: int | None = None, checkpoint: bool | int = False
) -> Relaxation:
    """Make exactly `steps` updates and differentiate through each of them: backpropagation through time.

    The reference that implicit gradients are held against; memory grows with the steps, or with their root where
    checkpointed.  The result has the form that `implicit` describes; `start` and the tolerance of `stop` play no part
    in its value, only in its status.  Its backward report is (steps differentiated, NaN, NaN, MAX_STEPS, NaN): nothing
    is solved, so nothing is known to have converged.

    Args:
        steps: at least 1.
        solver: `picard()` if left out; one whose update has a fixed number of operations, so not `newton_krylov()`.
        truncate: let the gradient flow through the last so many steps only, 1 … steps; fewer than all are biased, and
            the result is a `BiasedRelaxation`.  From a settled state, `truncate=k` is the adjoint `neumann(k − 1)`,
            off by the order of ρ^k.  Memory grows with k alone.
        checkpoint: True keeps the state at the ends of segments of about √steps and computes each segment again when
            the gradient comes to it: the same gradient for one more forward relaxation, in memory of order √steps.  A
            number is the length of a segment.

    Raises:
        ValueError: steps or checkpoint that is no whole number of at least 1, truncate outside 1 … steps; something
            else than a solver.

    Reference: Williams & Peng (1990), Neural Computation 2 (truncation); Chen et al. (2016), "Training deep nets with
    sublinear memory cost" (checkpoints).
    """
    _check(steps, truncate, checkpoint)
    solver = settled_solver(solver)
    last = steps if truncate is None else truncate
    segment = ceil(sqrt(last)) if checkpoint is True else checkpoint

    def relax(
        f: Map, args: PyTree, z0: State, *, stop: Stop | None = None, start: State = None, probe=None, extra=None
    ) -> Solution:
        del start
        check_map(lambda z: f(args, z), z0)
        z0 = as_arrays(z0)
        endless = settled_dtypes(stop or Stop(), z0)._replace(max_steps=jnp.int32(steps + 1))
        options = lambda args: {} if extra is None else extra(args)

        def move(step, told, path: Path) -> Path:
            return _still_settled(path, advance(step, partial(solver.update, f=step, **told), endless, path))

        step = lambda z: f(args, z)
        if last < steps:
            traced, captured = jax.closure_convert(f, args, z0)
            frozen, fixed = lax.stop_gradient((args, captured))
            still = lambda z: traced(frozen, z, *fixed)
            path = begin(still, lax.stop_gradient(z0), solver, endless)
            path = lax.stop_gradient(_walk(partial(move, still, options(frozen)), path, steps - last, 0))
            path = path._replace(r=trees.subtract(path.z, step(path.z)))  # the same residual, which moves with args
        else:
            path = begin(step, z0, solver, endless)
        path = _walk(partial(move, step, options(args)), path, last, segment)
        failed = jnp.where(path.status == RUNNING, jnp.int32(Status.MAX_STEPS), path.status)
        solution = report(path._replace(status=failed))
        value = solution.value if probe is None else _stamp(solution.value, probe, last)
        return lax.stop_gradient(solution)._replace(value=value)

    return relax if last == steps else BiasedRelaxation(relax)


def _check(steps: int, truncate: int | None, checkpoint: bool | int) -> None:
    check_whole(1, "Take as many as the network needs to settle.", steps=steps)
    check_whole(1, "Leave it out for all steps.", truncate=truncate)
    if truncate is not None and truncate > steps:
        raise ValueError(f"truncate must be in 1 … steps = {steps}, got {truncate}. Leave it out for all steps.")
    if not isinstance(checkpoint, bool):
        check_whole(1, "Take True for segments of about √steps.", checkpoint=checkpoint)


def _still_settled(path: Path, new: Path) -> Path:
    """The new path; once settled it counts as such while it stays, though noise in the steps says nothing any more."""
    lost = (new.status == Status.NONFINITE) | (new.status == Status.DIVERGED)
    settled = (path.status == Status.CONVERGED) & ~lost
    return new._replace(status=jnp.where(settled, path.status, new.status))


def _walk(move, path: Path, steps: int, segment: int) -> Path:
    """`steps` moves along the path; those of one segment (0: none) are made again when the gradient comes to them."""

    def several(path: Path, _, count: int):
        return lax.scan(lambda path, _: (move(path), None), path, length=count)[0], None

    if not segment:
        return several(path, None, steps)[0]
    count, rest = divmod(steps, segment)
    if rest:
        path = jax.checkpoint(partial(several, count=rest))(path, None)[0]
    inner = jax.checkpoint(partial(several, count=segment), prevent_cse=False)  # in a scan nothing can be shared
    return lax.scan(inner, path, length=count)[0]


def _stamp(z: State, probe: Probe, steps: int) -> State:
    """The identity on z; the probe's gradient becomes the report of a backward pass that solves nothing."""

    @jax.custom_vjp
    def stamp(z, probe):
        del probe
        return z

    note = jnp.array([steps, jnp.nan, jnp.nan, Status.MAX_STEPS, jnp.nan], probe.dtype)
    stamp.defvjp(lambda z, probe: (z, None), lambda _, g: (g, note))
    return stamp(z, probe)


BIASED: dict[str, Relaxation] = {"truncated": unrolled(50, truncate=5)}
EXAMPLES: dict[str, Relaxation] = {"unrolled": unrolled(50), "checkpointed": unrolled(50, checkpoint=True), **BIASED}
