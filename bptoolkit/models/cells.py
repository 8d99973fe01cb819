"""Recurrent networks of rate units, z = g(W z + U x + b), with the outputs z V + c.

Arrays are laid out as in `mlp`: w[j, i] is the weight from unit j to unit i, the transpose of the papers' w_ij.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.counts import fails, positive
from bptoolkit.fixed_point import symmetric
from bptoolkit.models.activations import Activation, Elementwise, check_activation, steepest, tanh
from bptoolkit.models.mlp import check_sizes, dense, uniform_fan_in
from bptoolkit.types import Cell, Key, Params

__all__ = ["hopfield_cell", "rate_cell"]


def rate_cell(inputs: int, units: int, outputs: int, *, activation: Elementwise = tanh, gain: float = 0.5) -> Cell:
    """The network of Almeida and Pineda: every unit hears every unit, z = g(W z + U x + b).

    The papers add the input outside of g, x_i = g(Σ_j w_ij x_j) + I_i; here it comes in as a current d = U x + b
    inside, so that states stay in the range of g.  Their adjoint state z_r is the error of a current added outside;
    that of a current inside, ∂L/∂d, is g′(u_r) z_r, and their rule reads ∂L/∂w[s, r] = z_s · ∂L/∂d_r.

    W starts as a random orthogonal matrix times gain / max |g′|: all its singular values, and the moduli of all its
    eigenvalues, are that number, so every step contracts by `gain` at least.  Training may undo it: watch
    `Settling.status`.  U, V and the biases start as in `mlp`.

    Parameters: {"w": (units, units), "u": (inputs, units), "b": (units,), "v": (units, outputs), "c": (outputs,)}.

    Args:
        inputs, units, outputs: their numbers; the input is flattened.
        activation: g, elementwise.  With `threshold`, which jumps, no gain makes the step contract.
        gain: Lipschitz constant of the step at the start; below 1 for a unique fixed point.

    Raises:
        ValueError: a size below one, a gain that is not positive and finite, an activation that is no function.

    Reference: Almeida (1987), IEEE ICNN; Pineda (1987), Physical Review Letters 59.
    """
    recurrent = lambda key: jax.nn.initializers.orthogonal()(key, (units, units), jnp.result_type(float))
    return _cell((inputs, units, outputs), recurrent, lambda w: w, activation, gain)


def hopfield_cell(inputs: int, units: int, outputs: int, *, activation: Activation = tanh, gain: float = 0.5) -> Cell:
    """A rate cell with W = (w + wᵀ)/2 and no self-connections, hence with an energy:

        E(z) = −½ zᵀW z − dᵀz + Σ_i ∫₀^{z_i} g⁻¹(s) ds,     d = U x + b,

    which never rises along dz/dt = −z + g(W z + d), for z in the range of g.  So the continuous relaxation always
    settles; `picard`, which is its Euler step of length 1, may still fall into a cycle of two.  Parameters and start
    as in `rate_cell`, but W is a Gaussian matrix scaled to the spectral norm gain / max |g′|.

    Args:
        inputs, units, outputs: their numbers; the input is flattened.
        activation: g, one that has a `potential`.
        gain: Lipschitz constant of the step at the start.

    Raises:
        ValueError: as in `rate_cell`; an activation without a potential.

    Reference: Hopfield (1984), PNAS 81.
    """
    potential = getattr(activation, "potential", None)
    if potential is None:
        raise ValueError(
            f"hopfield_cell needs an activation with a potential, the integral of its inverse; {activation} has none.\n"
            "Take tanh, sigmoid, piecewise_linear, relu or identity, or an Activation with a potential of your own."
        )

    def recurrent(key: Key) -> Float[Array, "units units"]:
        w = symmetric(jax.random.normal(key, (units, units)))
        norm = jnp.linalg.norm(w, ord=2)
        return w / jnp.where(norm > 0, norm, jnp.ones_like(norm))  # one unit alone has no weight at all

    cell = _cell((inputs, units, outputs), recurrent, symmetric, activation, gain)

    def gates(params: Params, source: Float[Array, "units"], target: Float[Array, "units"]) -> Params:
        both = source * target  # on either side of w, so that W stays symmetric
        return _scale_units(params, source, target) | {"w": params["w"] * both[:, None] * both}

    def energy(params: Params, x: Float[Array, "*d"], z: Float[Array, "units"]) -> Float[Array, ""]:
        current = dense({"w": params["u"], "b": params["b"]}, x)
        return -z @ symmetric(params["w"]) @ z / 2 - current @ z + jnp.sum(potential(z))

    return cell._replace(energy=energy, gates=gates)


def _cell(
    sizes: tuple[int, int, int],
    recurrent: Callable[[Key], Float[Array, "units units"]],
    effective: Callable[[Float[Array, "units units"]], Float[Array, "units units"]],
    activation: Elementwise,
    gain: float,
) -> Cell:
    """A cell whose W is effective(params["w"]); `recurrent` draws one of spectral norm 1."""
    check_activation(activation)
    check_sizes("A cell", sizes)
    if fails(positive, gain):
        raise ValueError(f"gain must be positive and finite, got {gain}. Below 1 the network settles from any state.")
    inputs, units, outputs = sizes

    def init(key: Key) -> Params:
        w, u, b, v, c = jax.random.split(key, 5)
        drawn = recurrent(w)
        return {
            "w": drawn * jnp.asarray(gain / steepest(activation), drawn.dtype),
            "u": uniform_fan_in(u, (inputs, units), inputs),
            "b": uniform_fan_in(b, (units,), inputs),
            "v": uniform_fan_in(v, (units, outputs), units),
            "c": uniform_fan_in(c, (outputs,), units),
        }

    drive = lambda params, x: dense({"w": params["u"], "b": params["b"]}, x)
    respond = lambda params, current, z: activation(z @ effective(params["w"]) + current)
    step = lambda params, x, z: respond(params, drive(params, x), z)
    readout = lambda params, z: dense({"w": params["v"], "b": params["c"]}, z)

    state = jax.ShapeDtypeStruct((units,), jnp.result_type(float))
    return Cell(init, step, readout, state, drive=drive, respond=respond, gates=_scale_units)


def _scale_units(params: Params, source: Float[Array, "units"], target: Float[Array, "units"]) -> Params:
    return {
        "w": params["w"] * source[:, None] * target,
        "u": params["u"] * target,
        "b": params["b"] * target,
        "v": params["v"] * source[:, None],
        "c": params["c"],
    }
