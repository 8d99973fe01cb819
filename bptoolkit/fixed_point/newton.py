"""Newton's method for z = f(z), each linear system solved by products with the Jacobian alone."""

import jax
import jax.numpy as jnp
import optax

from bptoolkit.fixed_point.adjoints import Adjoint, check_adjoint
from bptoolkit.fixed_point.arguments import Stop
from bptoolkit.fixed_point.krylov import gmres
from bptoolkit.fixed_point.solvers import Solver
from bptoolkit.types import PyTree

__all__ = ["newton_krylov"]


def newton_krylov(linear: Adjoint | None = None) -> Solver:
    """Δz from (I − J) Δz = −r with J = ∂f/∂z at z, by a Krylov method that stops early: inexact Newton.

    Few steps, each of many products with J: for maps that are dear to judge or far from contracting.  Converges from
    near z*, where the error falls by the linear tolerance in each step; far away it may not, and the status tells.
    It needs no ρ(J) < 1, only that I − J has an inverse.

    Args:
        linear: any exact adjoint, which here gets J in place of Jᵀ; `gmres(stop=Stop(rtol=1e-2, max_steps=100))` if
            left out.

    Raises:
        ValueError: something else than an adjoint.

    Reference: Dembo, Eisenstat & Steihaug (1982), SIAM J. Numer. Anal. 19; Knoll & Keyes (2004), J. Comp. Phys. 193.
    """
    linear = gmres(stop=Stop(rtol=1e-2, max_steps=100)) if linear is None else linear
    check_adjoint("linear", linear)

    def update(updates, state, params=None, *, live=True, **extra) -> tuple[PyTree, PyTree]:
        push = jax.linearize(extra["f"], params)[1]  # optax's names: the residual, nothing, and z
        awaited = jax.tree.map(lambda r: jnp.where(live, -r, jnp.zeros_like(r)), updates)  # zero costs no products
        return linear(push, awaited).value, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


EXAMPLES: dict[str, Solver] = {"newton_krylov": newton_krylov()}
