"""What a network does around its fixed point, and whether its gradient can be trusted there.

With J = ∂f/∂z at z*: the spectral radius max |λ| (below 1, plain iteration settles), the largest real part max Re λ
(below 1, the continuous relaxation does), the numerical range of J (its symmetric part below 1: no error ever grows on
the way), the residuals of a solver step by step, and two checks of the gradient that share no code with the adjoint:

    one more Neumann term       λ ← Jᵀλ + g must change neither λ nor the gradient (∂f/∂args)ᵀλ
    central differences         (L(args + εd) − L(args − εd)) / 2ε must be ⟨∂L/∂args, d⟩ for random directions d
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bptoolkit import trees
from bptoolkit.counts import check_whole
from bptoolkit.fixed_point.arguments import Stop, check_extra
from bptoolkit.fixed_point.relax import Map, Relaxation, implicit, value_and_grad
from bptoolkit.fixed_point.sizes import norm
from bptoolkit.fixed_point.solve import Solution, Status, settled_dtypes
from bptoolkit.fixed_point.solvers import Solver, settled_solver
from bptoolkit.fixed_point.stability import Spectrum, coordinates, largest_dt, linearised, ritz, spectrum
from bptoolkit.types import Key, PyTree, State

__all__ = ["Diagnosis", "GradientCheck", "Range", "diagnose", "gradient_check", "numerical_range"]
__all__ += ["residual_history", "spectral_abscissa", "spectral_radius"]

Loss: TypeAlias = Callable[[Any, State], Float[Array, ""]]  # (args, z*)


class Range(NamedTuple):
    """Least and greatest eigenvalue of the symmetric part (J + Jᵀ)/2: bounds of Re λ, and of vᵀJv over unit v."""

    low: Float[Array, ""]  # least
    high: Float[Array, ""]  # greatest


class GradientCheck(NamedTuple):
    """How far a gradient is to be trusted; relative numbers, 0 where all is well.

    forward, backward: how the relaxation and its adjoint ended.
    adjoint_residual: ‖Jᵀλ + g − λ‖ / ‖λ‖.
    next_term: change of the gradient by one more Neumann term, ‖(∂f/∂args)ᵀ(Jᵀλ + g − λ)‖ / ‖∂L/∂args‖.  The whole
        error may be 1/(1 − ρ) times as large.
    difference: estimate of the gradient's relative error, from central differences along random directions.
    settled: whether the shifted networks, on which `difference` rests, settled to the ordinary tolerance by the error
        that their solver estimates.  In float32 and with ρ(J) well above 1 the estimate may stay too cautious, as it
        rests on steps of rounding's size: False is then no proof, and float64 decides.
    """

    forward: Solution
    backward: Solution
    adjoint_residual: Float[Array, ""]
    next_term: Float[Array, ""]
    difference: Float[Array, ""]
    settled: Bool[Array, ""]


class Diagnosis(NamedTuple):
    """What `diagnose` found; `print` it.

    solution: how the relaxation ended; all else is measured at its value.
    spectrum: Ritz values of J and their residuals.
    radius, abscissa: max |λ| and max Re λ over them.
    dt: the largest Euler step that settles, in units of τ; 0 if none does.
    field: the numerical range.
    history: ‖z − f(z)‖ at z0 and after each step of the solver.
    gradient: None without a loss.
    """

    solution: Solution
    spectrum: Spectrum
    radius: Float[Array, ""]
    abscissa: Float[Array, ""]
    dt: Float[Array, ""]
    field: Range
    history: Float[Array, "steps+1"]
    gradient: GradientCheck | None

    def __str__(self) -> str:
        """A report in plain text; of one example."""
        if np.ndim(self.radius) > 0:
            rows = np.shape(self.radius)
            return f"Diagnoses of {rows} examples; print one, for example jax.tree.map(lambda x: x[0], diagnosis)."
        return "\n".join([*_settling_lines(self), *_spectrum_lines(self), *_gradient_lines(self), *_verdicts(self)])


def diagnose(
    f: Map,
    args: PyTree,
    z0: State,
    relax: Relaxation | None = None,
    loss: Loss | None = None,
    *,
    solver: Solver | None = None,
    steps: int = 50,
    size: int = 40,
    key: Key | None = None,
) -> Diagnosis:
    """Settle z = f(args, z) from z0, and measure what the network does there.  `print` the result for a report.

    For ONE example; under `jit` and `vmap` as well.  Outside `jit` each call compiles anew (seconds).

    Args:
        relax: `implicit()` if left out; where it does not settle, all is measured at its last iterate, and said so.
        loss: (args, z*) -> scalar; with one, the gradient is checked too (see `gradient_check`).
        solver: whose residuals are recorded, over `steps` steps from z0; `picard()` if left out.
        size: Krylov vectors, see `ritz`; as many as there are state values make the spectrum exact.
        key: `jax.random.key(0)` if left out.
    """
    check_whole(1, "Take 40.", size=size)
    check_whole(0, "Take 50.", steps=steps)
    relax = implicit() if relax is None else relax
    arnoldi, lanczos, shifts = jax.random.split(jax.random.key(0) if key is None else key, 3)
    solution = lax.stop_gradient(relax(f, args, z0))
    found = ritz(f, args, solution.value, size=size, key=arnoldi)
    return Diagnosis(
        solution=solution,
        spectrum=found,
        radius=jnp.max(jnp.abs(found.values)),
        abscissa=jnp.max(found.values.real),
        dt=largest_dt(found.values),
        field=numerical_range(f, args, solution.value, size=size, key=lanczos),
        history=residual_history(f, args, z0, solver, steps=steps),
        gradient=None if loss is None else gradient_check(f, args, z0, loss, relax, key=shifts),
    )


def spectral_radius(f: Map, args: PyTree, z: State, *, size: int = 40, key: Key | None = None) -> Float[Array, ""]:
    """ρ(J) = max |λ| at z, by Arnoldi; below 1, `picard()` settles near z.  Arguments and limits: see `ritz`."""
    return jnp.max(jnp.abs(ritz(f, args, z, size=size, key=key).values))


def spectral_abscissa(f: Map, args: PyTree, z: State, *, size: int = 40, key: Key | None = None) -> Float[Array, ""]:
    """max Re λ at z, by Arnoldi; below 1, dz/dt = −z + f(z) settles near z.  Arguments and limits: see `ritz`."""
    return jnp.max(ritz(f, args, z, size=size, key=key).values.real)


def numerical_range(f: Map, args: PyTree, z: State, *, size: int = 40, key: Key | None = None) -> Range:
    """Extreme eigenvalues of (J + Jᵀ)/2 at z, by Lanczos' method: one product Jv and one Jᵀv a step.

    Both ends are reached from within.  With high < 1, ‖z − z*‖ falls at every instant of dz/dt = −z + f(z) near z*;
    with high ≥ 1 > max Re λ it may grow first.  Arguments: see `ritz`.
    """
    product, flat = linearised(f, args, z)
    transposed = jax.linear_transpose(product, flat)
    values = spectrum(lambda v: (product(v) + transposed(v)[0]) / 2, flat, size, key).values.real
    return Range(jnp.min(values), jnp.max(values))


def residual_history(
    f: Map, args: PyTree, z0: State, solver: Solver | None = None, *, steps: int = 50, **extra
) -> Float[Array, "steps+1"]:
    """‖z − f(args, z)‖ at z0 and after each of `steps` updates; no step is left out, whatever happens.

    Args:
        solver: `picard()` if left out.
        extra: further keyword arguments for `solver.update`.
    """
    check_whole(0, "Take 50.", steps=steps)
    check_extra(extra)
    solver = settled_solver(solver)
    step = lambda z: f(args, z)

    def walk(path, _):
        z, memory = path
        r = trees.subtract(z, step(z))
        update, memory = solver.update(r, memory, z, f=step, **extra)
        return (trees.add(z, update), memory), norm(r)

    (z, _), sizes = lax.scan(walk, (z0, solver.init(z0)), length=steps)
    return jnp.append(sizes, norm(trees.subtract(z, step(z))))


def gradient_check(
    f: Map,
    args: PyTree,
    z0: State,
    loss: Loss,
    relax: Relaxation | None = None,
    *,
    directions: int = 4,
    key: Key | None = None,
) -> GradientCheck:
    """Check ∂L/∂args at the fixed point in two ways that do not use the adjoint: see the top of this module.

    A random direction of unit variance sees an error δ of the gradient as ⟨δ, d⟩, whose mean square is ‖δ‖²: the root
    mean square over `directions` estimates ‖δ‖/‖∂L/∂args‖, to about 1/√(2 · directions) of itself.  Differences resolve
    some 1e-7 in float64 and 1e-3 in float32, less near ρ = 1; they mean nothing where f or the loss has a kink.

    Args:
        f, z0: map (args, z) -> z of ONE example, and where it is settled from.
        args: floating (or complex) arrays only.
        loss: (args, z*) -> scalar.
        relax: `implicit()` if left out.
        directions: at least 1; each settles the network twice, from z*.
        key: `jax.random.key(0)` if left out.

    Raises:
        ValueError: directions that are no whole number of at least 1.
    """
    check_whole(1, "Take 4.", directions=directions)
    relax = implicit() if relax is None else relax
    _, grads, forward, backward = value_and_grad(loss, relax)(f, args, z0)
    z, size = forward.value, _nonzero(norm(grads))
    g = jax.grad(lambda z: loss(args, z))(z)
    pull = jax.vjp(f, args, z)[1]
    change = trees.subtract(trees.add(pull(backward.value)[1], g), backward.value)
    moved = pull(change)[0]
    measure = lambda key: _difference(f, args, z, loss, relax, grads, key)
    keys = jax.random.split(jax.random.key(0) if key is None else key, directions)
    errors, settled = jax.vmap(measure)(keys)
    return GradientCheck(
        forward=forward,
        backward=backward,
        adjoint_residual=norm(change) / _nonzero(norm(backward.value)),
        next_term=norm(moved) / size,
        difference=jnp.sqrt(jnp.mean(jnp.square(errors))) / size,
        settled=jnp.all(settled),
    )


def _difference(f: Map, args: PyTree, z: State, loss: Loss, relax: Relaxation, grads: PyTree, key: Key):
    """⟨∂L/∂args, d⟩ less the slope of L along one random direction d; whether both shifted networks settled."""
    at, back = coordinates(args)
    g = coordinates(jax.tree.map(jnp.conj, grads))[0]  # jax's gradients of complex arguments are conjugate
    d = jax.random.normal(key, at.shape, at.dtype)
    reach = float(jnp.finfo(g.dtype).eps) ** (1 / 3) * _nonzero(jnp.linalg.norm(at)) / jnp.linalg.norm(d)
    tight = Stop(rtol=64 * float(jnp.finfo(at.dtype).eps), max_steps=10_000)

    def shifted(sign):
        moved = back(at + sign * reach * d)
        first = relax(f, moved, z)
        last = relax(f, moved, first.value, stop=tight)
        # Where Anderson's steps are rounding, so is the error estimated from them: the better of both is taken.
        better = last.error < first.error
        value = jax.tree.map(lambda one, other: jnp.where(better, one, other), last.value, first.value)
        ordinary = settled_dtypes(Stop(), z).rtol * norm(value)
        return loss(moved, value), jnp.minimum(first.error, last.error) <= ordinary

    losses, settled = jax.vmap(shifted)(jnp.array([1, -1], at.dtype))
    slope = (losses[0] - losses[1]).astype(at.dtype) / (2 * reach)
    return slope - jnp.vdot(g, d), jnp.all(settled)


def _nonzero(size: Float[Array, ""]) -> Float[Array, ""]:
    """A norm to divide by: one where it is zero."""
    return jnp.where(size > 0, size, jnp.ones_like(size))


def _ending(solution: Solution) -> str:
    """How one relaxation ended."""
    return (
        f"{Status(int(solution.status)).name} after {int(solution.steps)} steps"
        f" (residual {float(solution.residual):.1e}, estimated error {float(solution.error):.1e},"
        f" × {float(solution.rate):.3f} a step)"
    )


def _settling_lines(d: Diagnosis) -> list[str]:
    count = sum(x.size for x in jax.tree.leaves(d.solution.value))
    lines = [f"Fixed point of {count} state values: {_ending(d.solution)}"]
    if d.solution.status not in (Status.CONVERGED, Status.STALLED):
        lines += ["  It did not settle: what follows is measured at its last iterate, which is no fixed point."]
    walked = f"{float(d.history[0]):.1e} to {float(d.history[-1]):.1e} in {len(d.history) - 1} steps"
    return [*lines, f"  residual along the solver's way     {walked}"]


def _spectrum_lines(d: Diagnosis) -> list[str]:
    growing = "" if d.field.high < 1 else "  (errors may grow before they shrink)"
    step = f"{float(d.dt):.4g} τ" if d.dt > 0 else "none settles"
    return [
        f"Spectrum of J = ∂f/∂z, from {len(d.spectrum.values)} Ritz values",
        f"  spectral radius max |λ|             {float(d.radius):.4g} ± {_doubt(d, np.abs):.1e}",
        f"  largest real part max Re λ          {float(d.abscissa):.4g} ± {_doubt(d, np.real):.1e}",
        f"  symmetric part of J                 {float(d.field.low):.4g} to {float(d.field.high):.4g}{growing}",
        f"  Euler steps of dz/dt settle below   {step}",
    ]


def _doubt(d: Diagnosis, measure: Callable) -> float:
    """The residual of the Ritz pair that stands out by this measure."""
    return float(d.spectrum.residuals[int(np.argmax(measure(np.asarray(d.spectrum.values))))])


def _gradient_lines(d: Diagnosis) -> list[str]:
    if d.gradient is None:
        return []
    check = d.gradient
    trusted = "" if check.settled else "  (not to be trusted: a shifted network did not settle)"
    return [
        f"Adjoint: {_ending(check.backward)}",
        f"  residual relative to λ              {float(check.adjoint_residual):.1e}",
        f"  gradient, one more Neumann term     changes by {float(check.next_term):.1e} of itself",
        f"  gradient, central differences       off by {float(check.difference):.1e} of itself{trusted}",
    ]


def _verdicts(d: Diagnosis) -> list[str]:
    continuous = _verdict("The continuous relaxation", "max Re λ", float(d.abscissa), _doubt(d, np.real))
    return [_verdict("Plain (Picard) iteration", "max |λ|", float(d.radius), _doubt(d, np.abs)), continuous]


def _verdict(method: str, name: str, number: float, doubt: float) -> str:
    if not np.isfinite(number):
        return f"Whether {method[0].lower()}{method[1:]} settles here cannot be said: J is not finite."
    if abs(number - 1) <= doubt:
        return f"{method} is too close to call here: {name} = {number:.4g} ± {doubt:.1e}. Try a larger size."
    return f"{method} {'settles' if number < 1 else 'does not settle'} here: {name} = {number:.4g}."
