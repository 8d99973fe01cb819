"""What a settling that failed does to values and gradients, sample by sample."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Bool, Int

from bptoolkit.fixed_point.solve import Solution, Status
from bptoolkit.types import State

__all__ = ["Policy", "require"]

Policy: TypeAlias = Literal["flag", "nan", "zero", "raise"]
"""What becomes of a sample whose forward or backward relaxation did not converge; `implicit` says what each does."""


def check_policy(policy: str) -> None:
    """Raise unless there is such a policy."""
    if policy not in get_args(Policy):
        raise ValueError(f"on_failure must be one of {', '.join(get_args(Policy))}, got {policy!r}.")


def require(solution: Solution) -> Solution:
    """The solution, or an error where any sample of it has not converged.

    Outside `jit` the error is raised here.  Inside, transform the compiled function by `jax.experimental.checkify`,
    which collects the error; without that, JAX says so while tracing.

    Raises:
        jax.errors.JaxRuntimeError: a status other than CONVERGED.
    """
    converged = solution.status == Status.CONVERGED
    checkify.check(
        jnp.all(converged),
        "A relaxation must converge; {failed} of its samples did not, with a largest status of {status} "
        "(see fixed_point.Status). Allow more steps, a larger tolerance, or another solver.",
        failed=jnp.sum(~converged),
        status=jnp.max(solution.status),
    )
    return solution


def settled_or(policy: Policy, solution: Solution) -> Solution:
    """The forward Solution under a policy."""
    if policy == "raise":
        return require(solution)
    if policy != "nan":
        return solution
    return solution._replace(value=_where(solution.status == Status.CONVERGED, solution.value, jnp.nan))


def at_finite(policy: Policy, fixed: Callable[[Array], Array], z: Array, status: Int[Array, ""]) -> Array:
    """`fixed`, the identity, at z; under "zero" linearised at 0 where f is not finite, since NaN times 0 is NaN."""
    if policy != "zero":
        return fixed(z)
    finite = status != Status.NONFINITE
    return jnp.where(finite, fixed(jnp.where(finite, z, 0)), z)


def adjoint_or(policy: Policy, forward: Bool[Array, ""], biased: bool, adjoint: Solution) -> State:
    """λ under a policy, which looks at both settlings.  A biased adjoint fails only where it has lost all sense."""
    lost = (adjoint.status == Status.NONFINITE) | (adjoint.status == Status.DIVERGED)
    good = forward & (~lost if biased else adjoint.status == Status.CONVERGED)
    substitutes = {"nan": jnp.nan, "zero": 0.0}
    return _where(good, adjoint.value, substitutes[policy]) if policy in substitutes else adjoint.value


def _where(condition: Bool[Array, ""], tree: State, otherwise: float) -> State:
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.full_like(x, otherwise)), tree)
