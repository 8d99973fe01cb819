"""A gated recurrent network at its fixed point: z = tanh(W (r ⊙ z) + U x + b), r = σ(R z + S x + q).

A gated unit moves by z ← (1 − f) ⊙ z + f ⊙ h(z).  Wherever f is not zero that stands still exactly at z = h(z): the
outer gate sets the speed of each unit and leaves no trace in where it settles, nor in the gradient there.  What is
left of the gates is the one inside the candidate h, and h is what is settled here; the speed is the solver's business.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.counts import fails, positive
from bptoolkit.models.mlp import check_sizes, dense, uniform_fan_in
from bptoolkit.types import Cell, Key, Params

__all__ = ["gated_cell"]


def gated_cell(inputs: int, units: int, outputs: int, *, gain: float = 0.5) -> Cell:
    """Units that hear each other through gates r: z = tanh(W (r ⊙ z) + U x + b), r = σ(R z + S x + q).

    Its fixed points are those of the minimal gated unit of Zhou et al., f = r, and of a GRU with that reset gate.  The
    drive is the pair (U x + b, S x + q) of the currents of candidates and gates.

    R starts as a random orthogonal matrix, W as one times gain / (1 + 1/4).  For |z_i| ≤ 1, the range of tanh,
    ∂(r ⊙ z)/∂z = diag(r) + diag(z ⊙ r′) R has a norm of at most 1 + 1/4, so every step contracts by `gain` at least.
    Training may undo it: watch `Settling.status`.

    Parameters: {"w": (units, units), "u": (inputs, units), "b": (units,)} of the candidates, the same as {"r", "s",
    "q"} of the gates, and {"v": (units, outputs), "c": (outputs,)} of the readout.

    Args:
        inputs, units, outputs: their numbers; the input is flattened.
        gain: Lipschitz constant of the step on [−1, 1]^units at the start; below 1 for a unique fixed point.

    Raises:
        ValueError: a size below one, a gain that is not positive.

    Reference: Zhou, Wu, Zhang & Zhou (2016), International Journal of Automation and Computing 13; Cho et al. (2014),
    EMNLP.
    """
    check_sizes("gated_cell", (inputs, units, outputs))
    if fails(positive, gain):
        raise ValueError(
            f"gain must be positive and finite, got {gain}. Below 1 the network settles from any state in its range."
        )

    def init(key: Key) -> Params:
        w, u, b, r, s, q, v, c = jax.random.split(key, 8)
        orthogonal = lambda k: jax.nn.initializers.orthogonal()(k, (units, units), jnp.result_type(float))
        return {
            "w": gain / 1.25 * orthogonal(w),
            "u": uniform_fan_in(u, (inputs, units), inputs),
            "b": uniform_fan_in(b, (units,), inputs),
            "r": orthogonal(r),
            "s": uniform_fan_in(s, (inputs, units), inputs),
            "q": uniform_fan_in(q, (units,), inputs),
            "v": uniform_fan_in(v, (units, outputs), units),
            "c": uniform_fan_in(c, (outputs,), units),
        }

    def drive(params: Params, x: Float[Array, "*d"]) -> tuple[Float[Array, "units"], Float[Array, "units"]]:
        return dense({"w": params["u"], "b": params["b"]}, x), dense({"w": params["s"], "b": params["q"]}, x)

    def respond(params: Params, current: tuple, z: Float[Array, "units"]) -> Float[Array, "units"]:
        candidate, gate = current
        r = jax.nn.sigmoid(z @ params["r"] + gate)
        return jnp.tanh((r * z) @ params["w"] + candidate)

    step = lambda params, x, z: respond(params, drive(params, x), z)
    readout = lambda params, z: dense({"w": params["v"], "b": params["c"]}, z)
    state = jax.ShapeDtypeStruct((units,), jnp.result_type(float))
    return Cell(init, step, readout, state, drive=drive, respond=respond)
