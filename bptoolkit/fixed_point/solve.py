"""Drive a solver until the estimated error ‖z − z*‖ is small, and say honestly how it ended.

The residual r = z − f(z) alone mis-states the error by up to 1/(1 − ρ), so two estimates are made and the larger holds:

    ‖r‖ · ‖Δz‖/‖Δr‖          since Δr = (I − J) Δz along the path, whatever the solver's damping
    ‖Δz‖ · q/(1 − q)         the sum of all steps to come, if they go on shrinking by q = ‖r_k‖/‖r_{k−1}‖

The first sees slow modes that damping hides; the second sees those that a large, fast residual hides (eigenvalues near
+ρ beside some near −ρ).  The largest ‖Δz‖/‖Δr‖ seen, which is at most ‖(I − J)⁻¹‖, is forgotten no faster than the
root of the residual falls: a slow rotation between unequal axes shows it only twice a turn.  None sees a mode that has
not shown itself yet, or the growth inside a Jordan block.
"""

from collections.abc import Callable
from enum import IntEnum
from functools import partial, reduce
from math import log
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bptoolkit import trees
from bptoolkit.fixed_point.arguments import Stop, as_arrays, check_counts, check_extra, check_map, check_stop
from bptoolkit.fixed_point.batch import anyone, if_anyone, masking, shared
from bptoolkit.fixed_point.compact import until_all_end
from bptoolkit.fixed_point.sizes import coarsest, honoured, judging_dtype, level, norm, real_dtype
from bptoolkit.fixed_point.solvers import Solver, picard, settled_solver
from bptoolkit.types import Memory, State

__all__ = ["Solution", "Status", "solve"]

GROWTH = 1e4  # a residual this many times the smallest one seen has diverged
PATIENCE = 8  # steps in a row before a cycle or a standstill is believed
LOST = 64  # steps without a smaller residual, once it is at the level of rounding: enough for an estimate to fade
CLOSEST = 3e-4  # to one that an estimated rate is believed to be
FRESH = 0.25  # weight of the newest step in the estimated rate
NO_DIGIT = 0.05  # relative error of a solution that says nothing
FADE = 0.87  # per step, of the largest error-to-residual factor seen: one lucky step must not end the search


class Status(IntEnum):
    """How a relaxation ended."""

    CONVERGED = 0  # the estimated error is within the tolerance
    MAX_STEPS = 1  # still on its way when the steps ran out
    DIVERGED = 2  # the residual grew ten-thousandfold
    NONFINITE = 3  # f returned NaN or an infinite value
    CYCLE = 4  # the state jumps between two points
    STALLED = 5  # the residual, or what a step moves, is at the level of rounding, the tolerance below it
    SINGULAR = 6  # I − J has no inverse here: the residual stands still, or z ran away until f was lost beside it


class Solution(NamedTuple):
    """What a relaxation returns; failure is a value.

    value: the last iterate, the one whose residual is given.
    residual: ‖z − f(z)‖₂ over the whole state.
    steps: updates made.
    rate: estimated contraction of the residual per step (geometric, recent steps weigh most).
    status: a `Status`.
    memory: the solver's own state.
    error: the estimated error ‖z − z*‖₂.
    """

    value: State
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    rate: Float[Array, ""]
    status: Int[Array, ""]
    memory: Memory
    error: Float[Array, ""]


class Path(NamedTuple):
    """One relaxation under way."""

    z: State
    r: State
    memory: Memory
    steps: Int[Array, ""]
    size: Float[Array, ""]  # ‖r‖
    best: Float[Array, ""]  # smallest ‖r‖ so far
    reach: Float[Array, ""]  # ‖z‖ beside which every ‖r‖ so far would be lost in rounding
    factor: Float[Array, ""]  # error over residual
    secant: Float[Array, ""]  # largest ‖Δz‖/‖Δr‖ seen, fading
    rate: Float[Array, ""]
    turning: Int[Array, ""]  # judgements in a row in which r had turned round: r_k ≈ −r_{k−1}
    still: Int[Array, ""]  # judgements in a row in which r had not changed
    lost: Int[Array, ""]  # steps since the smallest residual
    status: Int[Array, ""]  # RUNNING, or how it ended


RUNNING = -1


def solve(
    f: Callable[[State], State],
    z0: State,
    solver: Solver | None = None,
    stop: Stop = Stop(),
    *,
    every: int = 1,
    compact: int | None = None,
    **extra,
) -> Solution:
    """Settle z = f(z) from z0, for ONE example; batches by `jax.vmap`, in which each sample ends on its own.

    Args:
        f: a map of the state onto a state of the same shapes and dtypes.
        z0: any pytree of floating (or complex) arrays, or numbers.
        solver: `picard()` if left out.
        stop: see `Stop`.
        every: steps between two judgements of the error.  Judging costs some passes over the state, which shows
            beside products of few hundred units; the price of a larger number is up to every − 1 steps too many.
        compact: under `vmap`, gather the samples that are still on their way whenever their number has halved, down to
            batches of this size, so that the cost follows the work.  Pays where a few of many samples are slow and f
            is dear; each size is compiled on its own.  Products of other shapes round differently: samples then
            touch each other by rounding.  If left out, the whole batch goes on until the last sample has ended.
        extra: further keyword arguments for `solver.update`, such as the `resolvent` of operator splitting.

    Returns:
        Solution; check `status`.  Not differentiable: see `implicit` and `unrolled`.

    Raises:
        ValueError: f returns other shapes or dtypes than it was given; every or compact below 1; something else than
            a solver; something else than a `Stop`, a negative tolerance, or either given beside `stop`.
    """
    check_counts(every, compact)
    check_extra(extra)
    solver = settled_solver(solver)
    check_map(f, z0)
    z0 = as_arrays(z0)
    rule = settled_dtypes(stop, z0)
    update = partial(masking(solver.update), f=f, **extra)

    def go_on(path: Path, silent: int | Int[Array, ""]) -> Path:
        live = path.status == RUNNING
        new = advance(f, partial(update, live=live), rule, path, silent)
        judged, before = new._replace(memory=None), path._replace(memory=None)
        return trees.choose(live, judged, before)._replace(memory=new.memory)

    path = known_at_once(f, begin(f, z0, solver, rule), rule)
    running = lambda path: path.status == RUNNING
    if compact is None:
        return report(until_the_last_ends(go_on, running, path, rule, every))
    if every > 1:
        path = go_on(path, odd_steps(rule, every))
    common = jax.tree.map(lambda _: False, path)._replace(memory=shared(solver.update, path.memory))
    return report(until_all_end(lambda path: go_on(path, every - 1), running, path, common, compact))


def until_the_last_ends(go_on: Callable, running: Callable, path: Path, rule: "Rule", every: int) -> Path:
    """One judgement after another; the odd steps come first, so that exactly max_steps can be made."""
    if every == 1:
        return lax.while_loop(lambda path: anyone(running(path)), lambda path: go_on(path, 0), path)
    body = lambda at: (go_on(*at), jnp.full_like(at[1], every - 1))
    return lax.while_loop(lambda at: anyone(running(at[0])), body, (path, odd_steps(rule, every)))[0]


def odd_steps(rule: "Rule", every: int) -> Int[Array, ""]:
    """Silent steps before the first judgement."""
    return (jnp.maximum(rule.max_steps, 1) - 1) % every


def begin(f: Callable[[State], State], z0: State, solver: Solver, stop: "Rule") -> Path:
    """The path at z0, its residual certified."""
    r = trees.subtract(z0, f(z0))
    size = norm(r)
    zero, one, none = jnp.zeros_like(size), jnp.ones_like(size), jnp.int32(0)
    status = first_that_holds(
        {
            Status.NONFINITE: ~jnp.isfinite(size),
            Status.CONVERGED: size == 0,
            Status.MAX_STEPS: jnp.less_equal(stop.max_steps, 0),
        }
    )
    reach = norm(z0) + size / float(coarsest(z0).eps)
    return Path(z0, r, solver.init(z0), none, size, size, reach, one, zero, zero, none, none, none, status)


def known_at_once(f: Callable[[State], State], path: Path, stop: "Rule") -> Path:
    """The path, CONVERGED where it starts at the level of rounding and its error is within the tolerance.

    Where a state is settled already, as in warm starts, a step moves it by rounding, and r changes by rounding: they
    say nothing of each other.  One evaluation at a distance of √eps ‖z‖, along r, says ‖Δz‖/‖Δr‖ instead.
    """
    near = (path.status == RUNNING) & (path.size <= level(path.z) * norm(path.z))

    def probed(path: Path) -> Path:
        tiny = jnp.finfo(path.size.dtype).tiny
        length = float(coarsest(path.z).eps) ** 0.5 * norm(path.z) / jnp.maximum(path.size, tiny)
        wide = lambda x: x if jnp.iscomplexobj(x) else x.astype(real_dtype(x))  # r and the length are far apart
        far = lambda r: (wide(r) * length.astype(wide(r).dtype)).astype(r.dtype)
        there = jax.tree.map(lambda z, r: z + far(r), path.z, path.r)
        moved = norm(trees.subtract(there, path.z))
        change = norm(trees.subtract(trees.subtract(there, f(there)), path.r))
        factor = jnp.where(near, jnp.maximum(moved / jnp.maximum(change, tiny), 1), path.factor)
        close = near & (path.size * factor <= stop.atol + stop.rtol * norm(path.z))
        return path._replace(factor=factor, status=jnp.where(close, jnp.int32(Status.CONVERGED), path.status))

    return if_anyone(near, probed, path._replace(memory=None))._replace(memory=path.memory)


def advance(f, update: Callable, stop: "Rule", path: Path, silent: int | Int[Array, ""] = 0) -> Path:
    """`silent` updates, then one that is judged; each with one evaluation of f."""

    def move(_, at):
        z, r, memory = at
        change, memory = update(r, memory, z)
        z = jax.tree.map(jnp.add, z, change)
        return z, trees.subtract(z, f(z)), memory

    start = path.z, path.r, path.memory
    z, r, memory = start if isinstance(silent, int) and silent == 0 else lax.fori_loop(0, silent, move, start)
    change, memory = update(r, memory, z)
    z = jax.tree.map(jnp.add, z, change)
    return _judged(path, z, trees.subtract(z, f(z)), r, change, memory, jnp.int32(silent) + 1, stop)


def _judged(path: Path, z: State, r: State, before: State, update: State, memory, made, stop: "Rule") -> Path:
    """The path after `made` steps, the last of which moved z by `update` and the residual from `before` to r."""
    eps = float(coarsest(z).eps)
    size, scale, moved = norm(r), norm(z), norm(update)
    change, turn = norm(trees.subtract(r, before)), norm(trees.add(r, before))
    tiny = jnp.finfo(size.dtype).tiny
    several = made.astype(size.dtype)
    shrunk = jnp.log(jnp.maximum(size, tiny) / jnp.maximum(path.size, tiny)) / several
    old = jnp.where(path.steps == 0, 0, (1 - FRESH) ** several)
    log_rate = old * jnp.log(jnp.maximum(path.rate, tiny)) + (1 - old) * shrunk  # powers would not be vectorised
    rate, fade = jnp.exp(log_rate), jnp.exp(several * jnp.clip(log_rate / 2, log(FADE), 0))
    to_come = moved * rate / jnp.maximum(1 - rate, CLOSEST)  # the sum of all further steps, if they shrink at this rate
    secant = jnp.maximum(moved / jnp.maximum(change, tiny), fade * path.secant)
    factor = reduce(jnp.maximum, (secant, to_come / jnp.maximum(size, tiny), FADE**several * path.factor))
    at_rounding = size <= level(z) * scale

    turning = jnp.where((turn <= eps**0.5 * size) & ~at_rounding, path.turning + 1, 0)
    still = jnp.where((change <= 4 * eps * scale) & (moved > 1e3 * eps * scale), path.still + 1, 0)
    lost = jnp.where(size < path.best, 0, path.lost + made)
    steps = path.steps + made
    settled = (size * factor <= stop.atol + stop.rtol * scale) | (size == 0)
    reach = jnp.maximum(path.reach, size / eps)
    blind = scale > reach  # what f adds is lost in rounding beside z, so that no residual says anything
    status = first_that_holds(
        {
            Status.NONFINITE: ~jnp.isfinite(size) | ~jnp.isfinite(scale),
            Status.CONVERGED: settled & ~blind,
            Status.DIVERGED: (size > GROWTH * path.best) & ~at_rounding,
            Status.CYCLE: turning >= PATIENCE,
            Status.SINGULAR: (still >= PATIENCE) | settled,
            Status.STALLED: (at_rounding | (moved <= eps * scale)) & (lost >= LOST),
            Status.MAX_STEPS: steps >= stop.max_steps,
        }
    )
    best = jnp.minimum(size, path.best)
    return Path(z, r, memory, steps, size, best, reach, factor, secant, rate, turning, still, lost, status)


def report(path: Path) -> Solution:
    """The path as its user sees it."""
    error = jnp.where(path.size == 0, 0, path.size * path.factor)  # the factor may be infinite there
    return Solution(path.z, path.size, path.steps, path.rate, path.status, path.memory, error)


def certified(f: Callable[[State], State], value: State, reach: Float[Array, ""] | float = 1.0) -> Solution:
    """A solution reached by other means, judged by its true residual, and by `reach`, an estimate of ‖(I − J)⁻¹‖.

    Its error is at least what rounding the value makes of it: STALLED where that is beyond the tolerance, SINGULAR
    where it leaves no digit.
    """
    direct = report(begin(f, value, picard(), settled_dtypes(Stop(max_steps=1), value)))
    size, rounding = norm(value), float(coarsest(value).eps) / 2
    reach = jnp.asarray(reach, size.dtype)
    error = reach * jnp.maximum(direct.residual, rounding * size)
    close, some = error <= settled_dtypes(Stop(), value).rtol * size, reach * rounding < NO_DIGIT
    found, short = jnp.int32(Status.CONVERGED), jnp.where(some, jnp.int32(Status.STALLED), jnp.int32(Status.SINGULAR))
    told = {"status": jnp.where(close, found, short), "steps": jnp.int32(1), "error": error}
    return direct._replace(**told, rate=jnp.zeros_like(direct.rate))


class Rule(NamedTuple):
    """A `Stop` in fixed dtypes."""

    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    max_steps: Int[Array, ""]


def settled_dtypes(stop: Stop, z: State) -> Rule:
    """The same rule in fixed dtypes, so that another value never means another program."""
    check_stop(stop)
    dtype = judging_dtype(z)
    rtol = honoured(z) if stop.rtol is None else stop.rtol
    return Rule(jnp.asarray(rtol, dtype), jnp.asarray(stop.atol, dtype), jnp.asarray(stop.max_steps, jnp.int32))


def first_that_holds(outcomes: dict[Status, Bool[Array, ""]]) -> Int[Array, ""]:
    """The first outcome whose condition holds; RUNNING where none does."""
    status = jnp.int32(RUNNING)
    for outcome, holds in reversed(outcomes.items()):
        status = jnp.where(holds, jnp.int32(outcome), status)
    return status
