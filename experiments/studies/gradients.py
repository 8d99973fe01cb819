"""Error and cosine of the gradient by every adjoint, against its cost in products with the Jacobian.

A net z = tanh(Wz + b) of n units, whose fixed point z* is drawn first: W is a Gaussian matrix scaled so that
J = diag(1 − z*²) W has the spectral radius ρ exactly, and b = artanh(z*) − Wz*.  The loss is ⟨g, z*⟩ with a Gaussian g:

    ∇L = (∂f/∂(W, b))ᵀ λ,   λ = (I − Jᵀ)⁻¹ g;      error = ‖∇ − ∇L‖/‖∇L‖, with ∇L from a dense solve in float64

Run:    python scripts/study.py gradients
Cost:   the steps that the adjoint's Solution reports, each one product with Jᵀ or J; n of them for `dense`, one a
        column.  The last product, which only certifies the residual, is not counted.
Shine:  takes the factors of a forward Broyden solver that has come to z* from `away` beside it.
Time:   `unrolled` makes K steps from there, whose end is not z*, and goes back through them; `truncated` goes K steps
        back from a net that has made `settled` of them.  Either costs K products with Jᵀ.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bptoolkit import fixed_point as fp
from bptoolkit.runs.fields import Amount, Count, Some, Whole
from bptoolkit.runs.figures.look import COLOURS
from experiments.studies.canvas import canvas, floats

QUESTION = "How near to the true gradient does each adjoint come, for how many products with the Jacobian?"

# Names of `bptoolkit.fixed_point`, and two ways through time, by what they take.
Tolerant: TypeAlias = Literal["almeida_pineda", "gmres", "bicgstab", "cg_normal", "exact"]  # a `stop`
Series: TypeAlias = Literal["neumann", "phantom"]  # a number of terms or steps
Refined: TypeAlias = Literal["shine"]  # a number of refinements
Plain: TypeAlias = Literal["one_step", "dense"]  # nothing
ThroughTime: TypeAlias = Literal["unrolled", "truncated"]  # a number of steps: `terms`


@dataclass(frozen=True)
class Config:
    """Every field is a flag of `scripts/study.py`."""

    units: Count = 64
    radii: Some[Amount] = (0.9, 0.99)  # ρ(J)
    seeds: Count = 30  # nets
    tolerant: tuple[Tolerant, ...] = get_args(Tolerant)
    tolerances: Some[Amount] = (0.3, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # for them
    series: tuple[Series, ...] = get_args(Series)
    terms: Some[Count] = (1, 5, 10, 20, 50, 100, 200)  # for them, and for those through time
    refined: tuple[Refined, ...] = get_args(Refined)
    refinements: Some[Whole] = (0, 1, 2, 5, 10, 20)  # for them
    plain: tuple[Plain, ...] = get_args(Plain)
    through_time: tuple[ThroughTime, ...] = get_args(ThroughTime)
    settled: Count = 500  # steps before those of `truncated`
    max_steps: Count = 2000  # allowed to those with a tolerance
    memory: Count = 40  # of Broyden
    away: Amount = 0.1  # distance per unit from which Broyden starts
    key: Whole = 0


def check(config: Config) -> None:
    """Raise unless there is a gradient, a way to it, and as many settled steps as are gone back through."""
    if 1 in config.radii:
        raise ValueError("radii must not be 1, where I − J may be singular; got 1. Take, for example, 0.999.")
    families = ("tolerant", "series", "refined", "plain", "through_time")
    if not any(getattr(config, family) for family in families):
        raise ValueError(
            f"{', '.join(families)} must name at least one adjoint, got none. Name one, say --plain dense."
        )
    if "truncated" in config.through_time and max(config.terms) > config.settled:
        raise ValueError(
            f"terms must be at most the {config.settled} settled steps that truncated goes back through, "
            f"got {max(config.terms)}. Take fewer, a larger --settled, or --through-time unrolled."
        )


def measure(config: Config = Config()) -> dict:
    """Rows of {radius, adjoint, knob, products, error, cosine, converged}: medians over nets, with quartiles."""
    rows = []
    for radius in config.radii:
        problems = [problem(config, radius, seed) for seed in range(config.seeds)]
        nets = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *[net for net, _ in problems])
        exact = np.stack([gradient for _, gradient in problems])
        for name, knob, gradient_of in menu(config):
            found = jax.jit(jax.vmap(gradient_of))(nets)
            rows.append({"radius": radius, "adjoint": name, "knob": knob} | judged(config, name, exact, *found))
    return {"seeds": config.seeds, "rows": rows}


def problem(config: Config, radius: float, seed: int):
    """A net at its fixed point, and the true gradient with respect to W and b; all in float64."""
    rng, n = np.random.default_rng([config.key, seed]), config.units
    z, g, noise = rng.uniform(-0.9, 0.9, n), rng.normal(size=n), rng.normal(size=n)
    slope, w = 1 - z**2, rng.normal(size=(n, n)) / np.sqrt(n)
    w *= radius / np.abs(np.linalg.eigvals(slope[:, None] * w)).max()
    errors = slope * np.linalg.solve(np.eye(n) - (slope[:, None] * w).T, g)
    net = {"w": w, "b": np.arctanh(z) - w @ z, "z": z, "g": g, "start": z + config.away * noise}
    return net, np.append(np.outer(errors, z), errors)


def menu(config: Config) -> Iterator[tuple[str, float | None, Callable]]:
    """Every way to a gradient at every setting: what takes a net, and gives what `gradient_by` does."""
    by = lambda adjoint: partial(gradient_by, config, adjoint)
    for name in config.tolerant:
        for rtol in config.tolerances:
            yield name, rtol, by(getattr(fp, name)(stop=fp.Stop(rtol=rtol, max_steps=config.max_steps)))
    for names, numbers in ((config.series, config.terms), (config.refined, config.refinements)):
        yield from ((name, number, by(getattr(fp, name)(number))) for name in names for number in numbers)
    yield from ((name, None, by(getattr(fp, name)())) for name in config.plain)
    for name in config.through_time:
        for number in config.terms:
            relax = fp.unrolled(number) if name == "unrolled" else fp.unrolled(config.settled, truncate=number)
            yield name, number, partial(gradient_through, relax, number)


def weighted(net):
    """Its map, and W and b."""
    return lambda args, z: jnp.tanh(args["w"] @ z + args["b"]), {"w": net["w"], "b": net["b"]}


def flat(grads) -> jax.Array:
    """As the true gradient is laid out."""
    return jnp.append(jnp.ravel(grads["w"]), grads["b"])


def gradient_by(config: Config, adjoint, net):
    """The gradient of one net with respect to W and b as one vector, the steps and the status."""
    f, args = weighted(net)
    pull = jax.vjp(lambda z: f(args, z), net["z"])[1]
    forward = fp.solve(lambda z: f(args, z), net["start"], fp.broyden(config.memory))
    solution = adjoint(lambda v: pull(v)[0], net["g"], factors=forward.memory)
    grads = jax.vjp(lambda args: f(args, net["z"]), args)[1](solution.value)[0]
    return flat(grads), solution.steps, solution.status


def gradient_through(relax, steps: int, net):
    """The same by backpropagation through so many steps, which says nothing of having converged."""
    f, args = weighted(net)
    grads = jax.grad(lambda args: jnp.vdot(net["g"], relax(f, args, net["start"]).value))(args)
    return flat(grads), jnp.int32(steps), jnp.int32(fp.Status.MAX_STEPS)


def judged(config: Config, name: str, exact, found, steps, status) -> dict:
    """Medians over the nets of what one adjoint reached and cost, with the quartiles of its error."""
    found, size = np.asarray(found, np.float64), np.linalg.norm(exact, axis=1)
    error = np.linalg.norm(found - exact, axis=1) / size
    length = np.linalg.norm(found, axis=1)  # 0 where an adjoint gave up: no direction, which counts as a cosine of 0
    cosine = np.sum(found * exact, axis=1) / (size * np.where(length > 0, length, 1))
    low, middle, high = np.quantile(error, (0.25, 0.5, 0.75))
    return {
        "products": config.units if name == "dense" else float(np.median(steps)),
        "error": float(middle),
        "quartiles": [float(low), float(high)],
        "cosine": float(np.median(cosine)),
        "converged": int(np.sum(np.asarray(status) == fp.Status.CONVERGED)),
    }


def draw(results: dict):
    """Above: error against cost, with quartiles.  Below: one minus the cosine.  One column for each ρ."""
    radii = list(dict.fromkeys(row["radius"] for row in results["rows"]))
    figure, axes = canvas(2, len(radii), (5.2 * len(radii) + 1.0, 7.6), share=True)
    for (above, below), radius in zip(axes.T, radii, strict=True):
        for i, name in enumerate(dict.fromkeys(row["adjoint"] for row in results["rows"])):
            rows = [row for row in results["rows"] if (row["adjoint"], row["radius"]) == (name, radius)]
            rows.sort(key=lambda row: row["products"])
            cost, error = [row["products"] for row in rows], floats([row["error"] for row in rows])
            look = {"color": COLOURS[i % 7], "marker": "osD^vPX<>*"[i % 10], "linestyle": ("-", "--")[i // 7]}
            low, high = floats([row["quartiles"] for row in rows]).T
            above.errorbar(cost, error, [error - low, high - error], elinewidth=0.8, label=name, **look)
            below.plot(cost, np.maximum(1 - floats([row["cosine"] for row in rows]), 1e-8), **look)
        above.set(title=f"ρ = {radius:g}", yscale="log")
        above.set_xscale("symlog", linthresh=1)
        below.set(xlabel="products with the Jacobian", yscale="log")
    axes[0, 0].set_xlim(-0.2)  # only now: it ends the search for limits that hold all data, of all panels
    axes[0, 0].set_ylabel("relative error of the gradient")
    axes[1, 0].set_ylabel("1 − cosine")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"Gradients of a recurrent net: medians and quartiles over {results['seeds']} nets")
    return figure
