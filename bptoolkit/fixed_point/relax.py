"""Differentiable relaxation of z = f(args, z) by the implicit function theorem.

At the fixed point dz* = J dz* + (∂f/∂args) dargs, so forward mode solves with I − J and reverse mode with I − Jᵀ:

    λ = Jᵀλ + ∂L/∂z*,      ∂L/∂args = (∂f/∂args)ᵀ λ.

The rule is a `custom_jvp` around a `custom_linear_solve`, so it can be differentiated again, forward and backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from bptoolkit import trees
from bptoolkit.fixed_point import automatic
from bptoolkit.fixed_point.adjoints import Adjoint, Biased, check_adjoint
from bptoolkit.fixed_point.arguments import Stop, as_arrays, check_counts, check_map, check_stop, takes
from bptoolkit.fixed_point.failure import Policy, adjoint_or, at_finite, check_policy, settled_or
from bptoolkit.fixed_point.precision import settled_narrowly
from bptoolkit.fixed_point.sizes import judging_dtype, norm
from bptoolkit.fixed_point.solve import Solution, Status, solve
from bptoolkit.fixed_point.solvers import Solver, settled_solver
from bptoolkit.fixed_point.stability import coordinates
from bptoolkit.types import Memory, PyTree, State

__all__ = ["Relaxation", "implicit", "new_probe", "value_and_grad"]

Map: TypeAlias = Callable[[Any, State], State]
Relaxation: TypeAlias = Callable[..., Solution]
"""Settles z = f(args, z), differentiable in args: `relax(f, args, z0, *, stop, start, probe, extra) -> Solution`.

`implicit` and `unrolled` make one, and say what the arguments are.
"""
Probe: TypeAlias = Float[Array, "5"]  # its gradient is (steps, residual, rate, status, error) of the backward solve


def check_relaxation(name: str, relax: Relaxation) -> None:
    """Raise ValueError for something else than a relaxation, such as a solver, or the function that makes one."""
    if not takes(relax, "start", "probe"):
        made = "a solver" if isinstance(relax, optax.GradientTransformation) else type(relax).__name__
        named = getattr(relax, "__name__", made)
        raise ValueError(f"{name} must be a Relaxation, as implicit() or unrolled(50) makes one, got {named}.")


def new_probe(z: State) -> Probe:
    """Five zeros in the dtype that norms of this state are taken in, for `relax(…, probe=…)`.

    The gradient with respect to them is (steps, residual, rate, status, error) of the backward relaxation.

    Args:
        z: a state of ONE example, or its shapes, such as `model.cell.state`.
    """
    return jnp.zeros(5, judging_dtype(z))


def implicit(
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    stop: Stop = Stop(),
    *,
    every: int = 1,
    compact: int | None = None,
    coarse: DTypeLike | None = None,
    on_failure: Policy = "flag",
) -> Relaxation:
    """Settle by `solver`, differentiate by `adjoint`: memory does not grow with the steps.

    The result is `relax(f, args, z0, *, stop=None, start=None, probe=None, extra=None) -> Solution`, for one example:
        f: map (args, z) -> z.  What it closes over may be traced and is differentiated too.
        args: any pytree; the gradient of `Solution.value` flows to it.  z0 gets none.
        stop: in place of the one given here; its numbers may be traced.
        start: λ₀ for the adjoint, of the shape of z.
        probe: `new_probe(z0)`.  The gradient with respect to it is the backward report (steps, residual, rate,
            status, error); see `value_and_grad` for the whole adjoint state.
        extra: args -> keyword arguments for the solver's update, such as the `resolvent` of operator splitting.

    Complex states: f need not be holomorphic, the adjoint is solved in real and imaginary parts.  Gradients with
    respect to complex args are jax's, ∂L/∂Re − i ∂L/∂Im: descend along their conjugate.

    Outside `jit` each call traces f anew (some tenths of a second): put the gradient under `jax.jit`.

    Args:
        solver: if left out, `picard()` for 48 steps and then `anderson()` for samples still on their way.
        adjoint: if left out `exact()`, which is `bicgstab()` and `gmres()` for samples that it leaves; it costs fewer
            products than `almeida_pineda()` and needs no ρ(J) < 1.
        stop: when the forward relaxation ends.
        every: steps of a `solver` that is given between two judgements of its error; see `solve`.
        compact: smallest batch to which samples still on their way forward are gathered; see `solve`.
        coarse: dtype of a first relaxation, from whose end the one in the state's own dtype starts: `jnp.float32` where
            the state is float64.  f must then compute in the dtype of its arguments, and close over nothing wide.
        on_failure: what becomes of a sample whose forward or backward relaxation did not converge: "flag" leaves
            value and gradient as they are, and the status tells; "nan" makes them NaN; "zero" makes the gradient that
            passes the settled state zero, as the PDP software abandoned such patterns (a readout's own gradient
            remains, and args that are not finite themselves give NaN all the same); "raise" is `require` for the
            forward one, see there for `jit`.

    Raises:
        ValueError: an unknown policy, every or compact below 1, something else than a solver or an adjoint; from the
            result, what `solve` raises.
    """
    check_policy(on_failure)
    check_counts(every, compact)
    check_stop(stop)
    settled_solver(solver)
    usual, adjoint = stop, automatic.exact() if adjoint is None else adjoint
    check_adjoint("adjoint", adjoint)

    def relax(
        f: Map, args: PyTree, z0: State, *, stop: Stop | None = None, start: State = None, probe=None, extra=None
    ) -> Solution:
        stop = usual if stop is None else stop
        check_stop(stop)
        check_map(lambda z: f(args, z), z0)
        z0 = as_arrays(z0)
        ravel = _ravel_of(z0)
        flat, unravel = ravel(lax.stop_gradient(z0))
        traced, captured = jax.closure_convert(f, args, z0)
        step = lambda args, z: ravel(traced(args[0], unravel(z), *args[1]))[0]
        args = (args, captured)
        probe = new_probe(flat) if probe is None else probe
        start = None if start is None else ravel(lax.stop_gradient(start))[0]

        frozen = lax.stop_gradient(args)
        told = {} if extra is None else extra(frozen[0])
        still = lambda z: traced(frozen[0], z, *frozen[1])
        run = partial(_run, solver, every=every, compact=compact, **told)
        settled = _settled(run, f, args[0], still, unravel(flat), stop, coarse)
        factors = () if settled.memory is None else lax.stop_gradient(settled.memory)
        aside = Aside(start, factors, settled.status == Status.CONVERGED)
        fixed = _differentiable(step, _under(on_failure, adjoint))
        z = ravel(settled.value)[0]
        value = unravel(at_finite(on_failure, partial(fixed, args, probe, aside), z, settled.status))
        return settled_or(on_failure, lax.stop_gradient(settled)._replace(value=value))

    return relax


def _ravel_of(z: State) -> Callable:
    """z as one vector, and the way back; real and imaginary parts side by side where z is complex.

    J of a complex map that is not holomorphic is linear over the real numbers only, and its transpose with it.
    """
    complex_somewhere = any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(z))
    return coordinates if complex_somewhere else ravel_pytree


def _run(solver: Solver | None, f: Callable, z0: State, stop: Stop, *, every: int, compact: int | None, **told):
    """Settle by the solver, or by the library's choice."""
    if solver is None:
        return automatic.settle(f, z0, stop, compact=compact)
    return solve(f, z0, solver, stop, every=every, compact=compact, **told)


def _settled(run: Callable, f: Map, args: PyTree, still: Callable, z0: State, stop: Stop, coarse) -> Solution:
    """The forward relaxation, on the last digits only where a coarse one has found the others."""
    if coarse is None:
        return run(still, z0, stop)
    start, made = settled_narrowly(f, args, z0, coarse, stop, run)
    settled = run(still, start, stop._replace(max_steps=jnp.maximum(stop.max_steps - made, 0)))
    return settled._replace(steps=settled.steps + made)


class Aside(NamedTuple):
    """What the adjoint gets of the forward relaxation, beside the state."""

    start: Float[Array, "n"] | None  # λ₀
    factors: Memory  # of the forward solver; () where it has none
    converged: Bool[Array, ""]


def _under(policy: Policy, adjoint: Adjoint):
    """The adjoint with its λ under the policy, and its report as it is."""

    def judged(aside: Aside, matvec, g: Float[Array, "n"], **given) -> Solution:
        solution = adjoint(matvec, g, **given)
        return solution._replace(value=adjoint_or(policy, aside.converged, isinstance(adjoint, Biased), solution))

    return judged


def _differentiable(step: Map, adjoint):
    """The identity on a settled state z, with the derivative of the fixed point with respect to args."""

    @jax.custom_jvp
    def fixed(args: PyTree, probe: Probe, aside: Aside, z: Float[Array, "n"]) -> Float[Array, "n"]:
        del args, probe, aside
        return z

    @fixed.defjvp
    def rule(primals, tangents):
        args, probe, aside, z = primals
        z = fixed(args, probe, aside, z)  # so that the derivative of this rule sees z move with args
        pushed = jax.jvp(lambda a: step(a, z), (args,), (tangents[0],))[1]
        linear = jax.linearize(lambda v: step(args, v), z)[1]
        return z, _tangent(linear, pushed, tangents[1], partial(adjoint, aside), aside)

    return fixed


def _tangent(linear, pushed: Float[Array, "n"], probe: Probe, adjoint, aside: Aside) -> Float[Array, "n"]:
    """Solve (I − J) v = pushed.  The probe rides along behind an identity block, where the transposed solve reports.

    Both travel as one vector: the transpose rule fails on a part whose tangent is known to be zero.
    """
    n, narrow = pushed.size, pushed.dtype
    wide = jnp.result_type(probe)

    def join(v, tail):
        return jnp.concatenate([v.astype(wide), tail.astype(wide)])

    def apply(x):
        v = x[:n].astype(narrow)
        return join(v - linear(v), x[n:])

    def forward(_, b):
        return join(adjoint(linear, b[:n].astype(narrow)).value, b[n:])

    def backward(_, b):
        transposed = jax.linear_transpose(linear, pushed)
        known = {"start": aside.start, "factors": aside.factors}  # both are of the transposed system
        solution = adjoint(lambda v: transposed(v)[0], b[:n].astype(narrow), **known)
        numbers = (solution.steps, solution.residual, solution.rate, solution.status, solution.error)
        return join(solution.value, jnp.stack([jnp.asarray(x).astype(wide) for x in numbers]))

    return lax.custom_linear_solve(apply, join(pushed, probe), forward, backward)[:n].astype(narrow)


def value_and_grad(loss: Callable[[Any, State], Any], relax: Relaxation, *, has_aux: bool = False):
    """A function that returns a loss at a fixed point, its gradient, and how both relaxations ended.

    The backward Solution is read off by perturbation: adding d to f makes ∂L/∂d = λ, for any relaxation; its residual
    ‖λ − Jᵀλ − g‖ is computed anew at z*, and `memory` is None.

    Args:
        loss: (args, z*) -> scalar; it may use args directly, as a readout does.
        relax: an `implicit(…)` or `unrolled(…)`.
        has_aux: loss returns (scalar, aux), and the value is that pair, as in `jax.value_and_grad`.

    Returns:
        A function (f, args, z0, **options of relax) -> (value, gradient with respect to args, forward Solution,
        backward Solution).
    """
    scalar = lambda value: value[0] if has_aux else value

    def evaluate(f: Map, args: PyTree, z0: State, *, extra=None, **options):
        z0 = as_arrays(z0)
        options |= {} if extra is None else {"extra": lambda a: extra(a[0])}

        def objective(args, push, probe):
            solution = relax(lambda a, z: trees.add(f(a[0], z), a[1]), (args, push), z0, probe=probe, **options)
            value = loss(args, solution.value)
            return scalar(value), (value, solution)

        inputs = (args, trees.zeros_like(z0), new_probe(z0))
        (_, (value, forward)), grads = jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(*inputs)
        g = jax.grad(lambda z: scalar(loss(args, z)))(forward.value)
        backward = _backward(f, g, args, forward.value, *grads[1:])
        return value, grads[0], forward, backward

    return evaluate


def _backward(f: Map, g: State, args: PyTree, z: State, adjoint_state: State, told: Probe) -> Solution:
    """The adjoint's Solution from λ, what the probe told, and the true residual."""
    pulled = jax.vjp(lambda z: f(args, z), z)[1](adjoint_state)[0]
    residual = norm(trees.subtract(adjoint_state, trees.add(pulled, g)))
    steps, _, rate, status, error = told
    whole = lambda number: number.astype(jnp.int32)
    return Solution(adjoint_state, residual, whole(steps), rate, whole(status), None, error)


EXAMPLES: dict[str, Relaxation] = {"implicit": implicit()}
