"""Maps that return more than their next state, f(args, z) = (z', aux): activations, counts, a diagnostic."""

from collections.abc import Callable
from typing import Any

from bptoolkit.fixed_point.relax import Relaxation
from bptoolkit.fixed_point.solve import Solution
from bptoolkit.types import PyTree, State

__all__ = ["with_aux"]


def with_aux(relax: Relaxation) -> Callable[..., tuple[Solution, PyTree]]:
    """A relaxation of an f that returns (z, aux): (Solution, aux of the settled state).

        z* = f(args, z*)[0],      aux = f(args, z*)[1]

    Gradients flow to args through aux as through the value: directly, and by way of z*.  Under a policy that drops the
    gradient of a failed sample, only the latter goes.  While it settles aux is not kept, and the compiler leaves out
    what only aux needs; afterwards f is evaluated once more.

    Args:
        relax: an `implicit(…)` or `unrolled(…)`; its options pass through.
    """

    def settled(
        f: Callable[[Any, State], tuple[State, PyTree]], args: PyTree, z0: State, **options
    ) -> tuple[Solution, PyTree]:
        solution = relax(lambda args, z: f(args, z)[0], args, z0, **options)
        return solution, f(args, solution.value)[1]

    return settled
