"""A generative classifier: a variational auto-encoder for each class, and Bayes' rule with equal priors.

    logit of class c = log p_c(x),   by importance samples z ~ q_c(z | x)

Each auto-encoder learns from the rows of its class alone, so nothing is forgotten: classes never meet.

Reference: van de Ven, Li & Tolias (2021), CVPR workshops, "Class-incremental learning with generative classifiers".
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from bptoolkit import trees
from bptoolkit.continual.strengths import check_whole
from bptoolkit.continual.vae import Likelihood, check_hidden, vae
from bptoolkit.learning.learner import Learner, bare_learner
from bptoolkit.types import Batch, Info, Key, Memory, Model, Params, PyTree

__all__ = ["generative_classifier"]


def generative_classifier(
    inputs: int,
    classes: int,
    *,
    hidden: tuple[int, ...] = (85, 85),
    latent: int = 5,
    samples: int = 50,
    likelihood: Likelihood = "bernoulli",
) -> Learner:
    """A learner, not a strategy: there is no net whose outputs compete.

    Give it a stream with one class a task and `reset_optimizer=True`, as the protocol does: then each auto-encoder has
    its own steps and its own optimiser state.  Only those auto-encoders move whose class is in the batch.

    Args:
        inputs: values of an example.
        classes: one auto-encoder each; as many as the stream has outputs.
        hidden, latent: units of each encoder's hidden layers, values of z.
        samples: importance samples of log p(x).  Their noise belongs to the class and the row, and is the same again
            for the same row: a model draws nothing.
        likelihood: "bernoulli" for data in [0, 1], "gaussian" for any other.

    Raises:
        ValueError: a size below one, an unknown likelihood.
    """
    check_whole(inputs=inputs, classes=classes, latent=latent, samples=samples)
    check_hidden(hidden)
    net = vae(inputs, hidden, latent, likelihood)

    def init(key: Key) -> Params:
        return jax.vmap(net.init)(jax.random.split(key, classes))

    def apply(params: Params, x: Float[Array, "*d"]) -> tuple[Float[Array, "k"], Info]:
        flat = jnp.ravel(x)

        def of_class(given):
            one, number = given
            noise = jax.random.normal(jax.random.fold_in(_key_of(flat), number), (samples, latent), x.dtype)
            return net.log_likelihood(one, flat, noise)

        return lax.map(of_class, (params, jnp.arange(classes, dtype=jnp.int32))), Info()

    def gradient(memory: Memory, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Memory]:
        noise = jax.random.normal(key, (batch.x.shape[0], latent), batch.x.dtype)
        flat = batch.x.reshape(batch.x.shape[0], -1)

        def of_class(given: tuple[Params, Float[Array, "b"]]):
            one, weight = given

            def loss(one):
                losses = jax.vmap(net.loss, (None, 0, 0))(one, flat, noise)
                return jnp.sum(weight * losses) / jnp.sum(weight)

            none = lambda: (jnp.zeros((), flat.dtype), trees.zeros_like(one))
            return lax.cond(jnp.any(weight > 0), lambda: jax.value_and_grad(loss)(one), none)

        member = (batch.target * batch.weight[:, None]).T.astype(flat.dtype)  # (classes, b)
        losses, grads = lax.map(of_class, (params, member))
        there = jnp.sum(member, axis=1)
        total = jnp.sum(there)
        mean = jnp.sum(losses * there) / jnp.where(total > 0, total, 1)
        return grads, Info(loss=mean, weight=batch.weight), memory

    def after_step(memory: Memory, before: Params, after: Params, opt_state, batch: Batch, key: Key):
        """A zero gradient moves a weight under Adam: those of classes that are not there stay."""
        del key
        there = jnp.any(batch.target * batch.weight[:, None] > 0, axis=0)
        return jax.tree.map(lambda b, a: _where(there, a, b), before, after), opt_state, memory

    return bare_learner(Model(init, apply), gradient)._replace(after_step=after_step, logits=False)


def _key_of(x: Float[Array, "d"]) -> Key:
    """A key that another row would not have: of a sum of the values in which each has its own weight."""
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32))
    return jax.random.fold_in(jax.random.key(0), lax.bitcast_convert_type(x.astype(jnp.float32) @ weights, jnp.uint32))


def _where(there: Bool[Array, "classes"], a: Array, b: Array) -> Array:
    return jnp.where(there.reshape(-1, *[1] * (a.ndim - 1)), a, b)
