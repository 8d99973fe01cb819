"""A variational auto-encoder as a side network: what strategies that generate their replays learn and sample from.

    q(z | x) = N(μ(x), diag σ²(x)),     p(z) = N(0, I),     loss of ONE example, per value of x:
    L = [ −log p(x | z) + KL(q ‖ p) ] / d,     z = μ + σ ε,     KL = −½ Σ_i (1 + log σ_i² − μ_i² − σ_i²)

With the Bernoulli likelihood −log p is the cross-entropy of values in [0, 1], the decoder's outputs being logits; with
the Gaussian one of unit variance it is ½ ‖x − x̂‖², a constant left out.

Reference: Kingma & Welling (2014), ICLR; Burda, Grosse & Salakhutdinov (2016), ICLR, on importance samples.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit.counts import check_whole
from bptoolkit.models import mlp
from bptoolkit.types import Key, Params

__all__ = ["Likelihood", "Vae", "check_hidden", "vae"]

Likelihood: TypeAlias = Literal["bernoulli", "gaussian"]


class Vae(NamedTuple):
    """Functions of one example, x flattened to d values."""

    init: Callable[[Key], Params]
    encode: Callable[[Params, Float[Array, "d"]], tuple[Float[Array, "z"], Float[Array, "z"]]]  # μ, log σ²
    decode: Callable[[Params, Float[Array, "z"]], Float[Array, "d"]]  # the mean of p(x | z)
    loss: Callable[[Params, Float[Array, "d"], Float[Array, "z"]], Float[Array, ""]]  # the last is ε
    sample: Callable[[Params, Key], Float[Array, "d"]]
    log_likelihood: Callable[[Params, Float[Array, "d"], Float[Array, "s z"]], Float[Array, ""]]


def check_hidden(hidden: tuple[int, ...]) -> None:
    """Raise unless these are the sizes of layers."""
    if not isinstance(hidden, tuple | list):
        raise ValueError(f"hidden must be a tuple of whole numbers, got {hidden!r}. Write (400, 400).")
    for units in hidden:
        check_whole(hidden=units)


def vae(inputs: int, hidden: tuple[int, ...], latent: int, likelihood: Likelihood = "bernoulli") -> Vae:
    """Dense encoder and decoder with ReLU, the decoder's hidden layers in reverse.

    Args:
        inputs: values of an example.
        hidden: units of the encoder's hidden layers.
        latent: values of z.
        likelihood: "bernoulli" for values in [0, 1], "gaussian" for any.

    Raises:
        ValueError: a size below one, an unknown likelihood.
    """
    if likelihood not in get_args(Likelihood):
        raise ValueError(f'likelihood must be "bernoulli" or "gaussian", got {likelihood!r}.')
    encoder, decoder = mlp(inputs, *hidden, 2 * latent), mlp(latent, *hidden[::-1], inputs)
    bernoulli = likelihood == "bernoulli"

    def init(key: Key) -> Params:
        encoder_key, decoder_key = jax.random.split(key)
        return {"encoder": encoder.init(encoder_key), "decoder": decoder.init(decoder_key)}

    def encode(params: Params, x: Float[Array, "d"]):
        mean, log_variance = jnp.split(encoder.apply(params["encoder"], x)[0], 2)
        return mean, log_variance

    def decode(params: Params, z: Float[Array, "z"]) -> Float[Array, "d"]:
        out, _ = decoder.apply(params["decoder"], z)
        return jax.nn.sigmoid(out) if bernoulli else out

    def loss(params: Params, x: Float[Array, "d"], noise: Float[Array, "z"]) -> Float[Array, ""]:
        mean, log_variance = encode(params, x)
        z = mean + jnp.exp(log_variance / 2) * noise
        out, _ = decoder.apply(params["decoder"], z)
        miss = jnp.sum(jax.nn.softplus(out) - x * out) if bernoulli else jnp.sum(jnp.square(x - out)) / 2
        divergence = -jnp.sum(1 + log_variance - jnp.square(mean) - jnp.exp(log_variance)) / 2
        return (miss + divergence) / inputs

    def sample(params: Params, key: Key) -> Float[Array, "d"]:
        return decode(params, jax.random.normal(key, (latent,)))

    def log_likelihood(params: Params, x: Float[Array, "d"], noise: Float[Array, "s z"]) -> Float[Array, ""]:
        """log 1/S Σ_s p(x | z_s) p(z_s) / q(z_s | x), by importance samples; p(x | z) = N(x̂(z), I), no constant."""
        mean, log_variance = encode(params, x)

        def weight(epsilon):
            z = mean + jnp.exp(log_variance / 2) * epsilon
            ratio = jnp.sum(jnp.square(epsilon) - jnp.square(z) + log_variance) / 2  # log p(z) − log q(z | x)
            return ratio - jnp.sum(jnp.square(x - decode(params, z))) / 2

        weights = jax.lax.map(weight, noise)  # one sample at a time: memory does not grow with their number
        return jax.nn.logsumexp(weights) - jnp.log(jnp.asarray(noise.shape[0], weights.dtype))

    return Vae(init, encode, decode, loss, sample, log_likelihood)
