"""Learning rules: how a gradient comes about.  Each makes a learner out of a model."""

import jax
import jax.numpy as jnp

from bptoolkit.fixed_point import new_probe
from bptoolkit.learning.learner import Learner, bare_learner
from bptoolkit.learning.losses import Loss, check_loss, cross_entropy, mean_loss
from bptoolkit.types import Batch, Info, Key, Memory, Model, Params, PyTree, Settling

__all__ = ["backprop", "probes_of", "told_by"]


def backprop(model: Model, loss: Loss = cross_entropy) -> Learner:
    """Follow the gradient of the batch's weighted mean loss, by `jax.grad`.

    A feed-forward model is differentiated through its layers (static backpropagation); a model that settles through
    its fixed point, by whatever adjoint its relaxation was given (recurrent backpropagation), and then `Info` tells
    how the forward and the backward relaxation of every row ended.

    Raises:
        ValueError: something else than a model or a loss.

    Reference: Rumelhart, Hinton & Williams (1986), Nature 323; Almeida (1987); Pineda (1987).
    """
    if not isinstance(model, Model):
        raise ValueError(f"backprop needs a Model, got {type(model).__name__}. Make one of a cell by equilibrium.")
    check_loss(loss)

    def gradient(memory: Memory, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Memory]:
        del key
        (value, info), (grads, probes) = jax.value_and_grad(objective, (0, 1), has_aux=True)(
            params, probes_of(model, batch), batch
        )
        return grads, info._replace(loss=value, backward=told_by(probes), weight=batch.weight), memory

    def objective(params, probes, batch):
        if probes is None:
            logits, info = jax.vmap(model.apply, (None, 0))(params, batch.x)
        else:
            logits, info = jax.vmap(lambda x, probe: model.apply(params, x, probe=probe))(batch.x, probes)
        return mean_loss(loss, logits, batch), info

    return bare_learner(model, gradient, loss)


def probes_of(model: Model, batch: Batch):
    """One probe a row, for the backward reports of a model that settles."""
    if model.cell is None:
        return None
    probe = new_probe(model.cell.state)
    return jnp.broadcast_to(probe, (batch.x.shape[0], probe.size))


def told_by(probes) -> Settling | None:
    """The backward report of every row, as it came out of the probes' gradient."""
    if probes is None:
        return None
    steps, residual, rate, status, _ = jnp.moveaxis(probes, -1, 0)
    return Settling(steps.astype(jnp.int32), residual, rate, status.astype(jnp.int32))


EXAMPLES = {"backprop": backprop}
