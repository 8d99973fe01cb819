"""What the library does when it is not told: the cheap method first, the dear one for samples that it leaves.

Under `vmap` the second is not entered where the first has settled all samples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bptoolkit import trees
from bptoolkit.fixed_point.adjoints import SMALL, Adjoint, Matvec, dense
from bptoolkit.fixed_point.arguments import Stop, check_stop
from bptoolkit.fixed_point.batch import if_anyone
from bptoolkit.fixed_point.krylov import bicgstab, gmres
from bptoolkit.fixed_point.solve import Solution, Status, solve
from bptoolkit.fixed_point.solvers import anderson, picard
from bptoolkit.types import Memory, State

__all__ = ["exact", "settle"]

TRIES = 48  # plain steps before Anderson's, which cost about three times as much each
EVERY = 3  # plain steps between two judgements


def settle(f: Callable[[State], State], z0: State, stop: Stop = Stop(), *, compact: int | None = None) -> Solution:
    """Plain iteration for 48 steps; samples still on their way, or lost, go on by `anderson()`.

    Plain iteration wastes nothing where the spectrum of J fills a disc, which no method with a few products a step can
    beat; Anderson's needs no ρ(J) < 1 and far fewer steps where single eigenvalues are slow.

    Args:
        f, z0, stop, compact: as for `solve`; max_steps counts the steps of both.
    """
    check_stop(stop)
    few = stop._replace(max_steps=jnp.minimum(stop.max_steps, TRIES))
    plain = solve(f, z0, picard(), few, every=EVERY, compact=compact)
    plain = plain._replace(memory=None)

    def accelerated(plain: Solution) -> Solution:
        left = jnp.where(plain.status == Status.CONVERGED, 0, jnp.maximum(stop.max_steps - plain.steps, 0))
        lost = (plain.status != Status.CONVERGED) & (plain.status != Status.MAX_STEPS)
        start = trees.choose(lost, z0, plain.value)
        return _second(plain, solve(f, start, anderson(), stop._replace(max_steps=left), compact=compact))

    return if_anyone(plain.status != Status.CONVERGED, accelerated, plain)


def exact(stop: Stop = Stop()) -> Adjoint:
    """`dense` for states of up to 8 values; else `bicgstab`, and `gmres` for samples that it leaves.

    Exact; needs no ρ(J) < 1.

    Args:
        stop: as for `solve`; max_steps counts products, of each of the two.
    """
    check_stop(stop)

    def adjoint(matvec: Matvec, g: State, *, start: State | None = None, factors: Memory = None) -> Solution:
        if sum(leaf.size for leaf in jax.tree.leaves(g)) <= SMALL:
            return dense()(matvec, g)
        first = bicgstab(stop)(matvec, g, start=start, factors=factors)._replace(memory=None)

        def again(first: Solution) -> Solution:
            left = jnp.where(first.status == Status.CONVERGED, 0, stop.max_steps)
            usable = (first.status == Status.MAX_STEPS) | (first.status == Status.CONVERGED)
            onward = trees.choose(usable, first.value, trees.zeros_like(g))
            return _second(first, gmres(stop=stop._replace(max_steps=left))(matvec, g, start=onward))

        return if_anyone(first.status != Status.CONVERGED, again, first)

    return adjoint


def _second(first: Solution, second: Solution) -> Solution:
    """The first solution where it converged, else the second with the steps of both."""
    done = first.status == Status.CONVERGED
    return trees.choose(done, first, second._replace(steps=first.steps + second.steps, memory=None))


EXAMPLES: dict[str, Adjoint] = {"exact": exact()}
