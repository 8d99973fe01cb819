"""Elementwise nonlinearities g, each with its derivative g′ written by hand.

A plain function (say `jax.nn.silu`) may stand wherever one of these does: `slope` and `steepest` then differentiate it.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import xlogy
from jaxtyping import Array, Float

__all__ = [
    "EXAMPLES",
    "Activation",
    "gelu",
    "identity",
    "piecewise_linear",
    "relu",
    "sigmoid",
    "slope",
    "softplus",
    "steepest",
    "tanh",
    "threshold",
]

Elementwise: TypeAlias = Callable[[Float[Array, "..."]], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Activation:
    """A nonlinearity h = g(a): `activation(a)` is its value, `activation.slope(a)` its derivative.

    Attributes:
        name: what tables and figures call it.
        value: g.
        slope: g′, written by hand; `jax.grad` of the value agrees with it everywhere, kinks included.
        steepest: the largest |g′|, so that |g(a) − g(c)| ≤ steepest · |a − c|.
        potential: z ↦ ∫₀^z g⁻¹(s) ds on the range of g, which a Hopfield energy needs; None where g has no
            continuous inverse or its integral no closed form.
    """

    name: str
    value: Elementwise
    slope: Elementwise
    steepest: float
    potential: Elementwise | None = None

    def __call__(self, a: Float[Array, "..."]) -> Float[Array, "..."]:
        """g(a)."""
        return self.value(a)


def check_activation(activation: Elementwise) -> None:
    """Raise unless it can be applied."""
    if not callable(activation):
        raise ValueError(f"activation must be a function of numbers, such as activations.tanh, got {activation!r}.")


def slope(activation: Elementwise, a: Float[Array, "..."]) -> Float[Array, "..."]:
    """g′(a), by hand where the activation has it, else by forward differentiation."""
    if isinstance(activation, Activation):
        return activation.slope(a)
    return jax.jvp(activation, (a,), (jnp.ones_like(a),))[1]


def steepest(activation: Elementwise) -> Float[Array, ""] | float:
    """The largest |g′| of an activation; for a plain function, the largest found on a grid over [−20, 20]."""
    if isinstance(activation, Activation):
        return activation.steepest
    return jnp.max(jnp.abs(slope(activation, jnp.linspace(-20.0, 20.0, 40_001))))


def _with_kinks(value: Elementwise, derivative: Elementwise) -> Elementwise:
    """The function whose derivative at a kink, a matter of convention, is the one written by hand."""
    ruled = jax.custom_jvp(value)
    ruled.defjvps(lambda tangent, _, a: tangent * derivative(a))
    return ruled


def _where(condition: Array, a: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 where the condition holds, else 0, in the dtype of a."""
    return condition.astype(a.dtype)


def _logistic_slope(a: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.sigmoid(a) * jax.nn.sigmoid(-a)  # not 1 − σ(a), which is 0 from a = 37 on


def _gelu_slope(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """Φ(a) + a φ(a)."""
    density = jnp.exp(-jnp.square(a) / 2) / (2 * jnp.pi) ** 0.5
    return lax.erfc(-a / 2**0.5) / 2 + a * density


_step_value = lambda a: jnp.sign(jnp.maximum(a, 0))  # so a NaN stays one
_inside = lambda a: _where(jnp.abs(a) < 1, a)
_positive = lambda a: _where(a > 0, a)
_sech_squared = lambda a: 1 / jnp.square(jnp.cosh(a))
_half_square = lambda z: jnp.square(z) / 2

threshold = Activation("threshold", _with_kinks(_step_value, _logistic_slope), _logistic_slope, steepest=0.25)
"""1 where a > 0, else 0: the unit of McCulloch & Pitts (1943).

Its derivative is zero, so the slope is a SURROGATE: that of the logistic sigmoid, σ(a) (1 − σ(a)), of which the
threshold is the steep limit.  Gradients through it are no derivatives of the loss.
Reference: Neftci, Mostafa & Zenke (2019), IEEE Signal Processing Magazine 36.
"""

piecewise_linear = Activation(
    "piecewise_linear", _with_kinks(lambda a: jnp.clip(a, -1, 1), _inside), _inside, 1.0, _half_square
)
"""½ (|a + 1| − |a − 1|): the identity cut off at ±1, with slope 0 at the corners.

Reference: Chua & Yang (1988), IEEE Transactions on Circuits and Systems 35, eq. (2).
"""

sigmoid = Activation("sigmoid", jax.nn.sigmoid, _logistic_slope, 0.25, lambda z: xlogy(z, z) + xlogy(1 - z, 1 - z))
"""The logistic function 1 / (1 + e^−a)."""

tanh = Activation("tanh", jnp.tanh, _sech_squared, 1.0, lambda z: (xlogy(1 + z, 1 + z) + xlogy(1 - z, 1 - z)) / 2)
"""The hyperbolic tangent."""

relu = Activation("relu", _with_kinks(lambda a: jnp.maximum(a, 0), _positive), _positive, 1.0, _half_square)
"""max(a, 0), with slope 0 at 0."""

softplus = Activation("softplus", jax.nn.softplus, jax.nn.sigmoid, 1.0)
"""log(1 + e^a)."""

gelu = Activation("gelu", lambda a: a * lax.erfc(-a / 2**0.5) / 2, _gelu_slope, steepest=1.128904145)
"""a Φ(a), exact and not the tanh approximation; steepest at a = √2.  Reference: Hendrycks & Gimpel (2016)."""

identity = Activation("identity", lambda a: a, jnp.ones_like, 1.0, _half_square)
"""a itself, for output layers."""

EXAMPLES = (threshold, piecewise_linear, sigmoid, tanh, relu, softplus, gelu, identity)
"""All of the above."""
