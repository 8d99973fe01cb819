"""Deep generative replay: a generator learned beside the net dreams up rows of earlier tasks, the old net labels them.

With k − 1 tasks behind both train on 1/k of the current rows and 1 − 1/k of generated ones; net and generator of the
last task's end do the generating and labelling.  Nothing of the data is kept.

Reference: Shin, Lee, Kim & Kim (2017), NeurIPS; hard labels and weights of van de Ven, Tuytelaars & Tolias (2022).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from bptoolkit.continual.buffers import concatenate, weigh
from bptoolkit.continual.nesting import around
from bptoolkit.continual.strengths import check_whole
from bptoolkit.continual.vae import Likelihood, Vae, check_hidden, vae
from bptoolkit.learning.fit import checked_optimizer
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["generative_replay"]


class Dream(NamedTuple):
    """The generator, and who generated and labelled when the last task ended."""

    inner: Memory
    generator: Params
    opt_state: PyTree
    old_generator: Params
    old_net: Params
    active: Bool[Array, "tasks k"]  # outputs of each task behind
    tasks: Int[Array, ""]


def generative_replay(
    rows: int | None = None,
    *,
    hidden: tuple[int, ...] = (400, 400),
    latent: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    likelihood: Likelihood = "bernoulli",
    per_task: bool | None = None,
) -> Strategy:
    """Replay what a variational auto-encoder generates.

    The labels are hard: the old net's largest output.  The generator makes one update of its own with every step.

    Args:
        rows: generated rows a step; as many as the batch has if left out.
        hidden, latent: units of the encoder's hidden layers (the decoder's in reverse), values of z.
        optimizer: of the generator; `optax.adam(1e-3)` if left out.
        likelihood: "bernoulli" for data in [0, 1], "gaussian" for any other.
        per_task: every generated row once for each task behind, as of that task and labelled among its outputs; if left
            out, where the stream tells the task.

    Raises:
        ValueError: less than one row, a size below one, an unknown likelihood; per_task=False where the task is told.
    """
    check_whole(rows=rows, latent=latent)
    check_hidden(hidden)
    optimizer = optax.adam(1e-3) if optimizer is None else checked_optimizer(optimizer)

    def strategy(learner: Learner) -> Learner:
        net_of = lambda x: vae(math.prod(x.shape), hidden, latent, likelihood)

        def init(params: Params, spec: StreamSpec, key: Key) -> Dream:
            inner_key, generator_key = jax.random.split(key)
            inner, generator = learner.init(params, spec, inner_key), net_of(spec.example.x).init(generator_key)
            told = spec.scenario == "task"
            if told and per_task is False:
                raise ValueError(
                    "generative_replay labels rows among the outputs of each task where the task is told, got "
                    "per_task=False. Leave it out."
                )
            heads = max(spec.tasks - 1, 1) if told or per_task else 1
            active = jnp.zeros((heads, spec.outputs), bool)
            return Dream(inner, generator, optimizer.init(generator), generator, params, active, jnp.int32(0))

        def gradient(memory: Dream, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Dream]:
            inner_key, dream_key, noise_key = jax.random.split(key, 3)
            net = net_of(batch.x[0])
            wanted = batch.x.shape[0] if rows is None else rows
            dreamt = generated(net, memory, batch, wanted, dream_key)
            share = 1 / (memory.tasks + 1).astype(batch.weight.dtype)
            heads = range(memory.active.shape[0])
            as_of = lambda head: dreamt if len(heads) == 1 else dreamt._replace(task=jnp.full_like(dreamt.task, head))
            answer = lambda head: learner.predict(memory.inner, memory.old_net, as_of(head))[0]
            logits = [answer(0)] * len(heads) if learner.view is None else [answer(head) for head in heads]
            labelled = concatenate(*(_for_head(memory, as_of(head), logits[head], head) for head in heads))
            mixed = concatenate(weigh(batch, share), weigh(labelled, 1 - share))
            grads, info, inner = learner.gradient(memory.inner, params, mixed, inner_key)

            seen = concatenate(weigh(batch, share), weigh(dreamt, 1 - share))
            noise = jax.random.normal(noise_key, (seen.x.shape[0], latent), seen.x.dtype)
            generator, opt_state = _learn(net, optimizer, memory, seen, noise)
            return grads, info, memory._replace(inner=inner, generator=generator, opt_state=opt_state)

        def end_task(memory: Dream, params: Params, task: Task, key: Key) -> tuple[Params, Dream]:
            params, inner = learner.end_task(memory.inner, params, task, key)
            own = task.rows(jnp.zeros(1, jnp.int32)).active[0]
            active = memory.active.at[jnp.minimum(memory.tasks, memory.active.shape[0])].set(own, mode="drop")
            return params, memory._replace(
                inner=inner, old_generator=memory.generator, old_net=params, active=active, tasks=memory.tasks + 1
            )

        return around(learner, init=init, gradient=gradient, end_task=end_task)

    return strategy


def generated(net: Vae, memory: Dream, batch: Batch, rows: int, key: Key) -> Batch:
    """Rows of the old generator, without labels; weight 0 before a task has ended."""
    x = jax.vmap(net.sample, (None, 0))(memory.old_generator, jax.random.split(key, rows))
    like = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], (rows, *leaf.shape[1:])), batch)
    weight = jnp.broadcast_to(memory.tasks > 0, (rows,)).astype(batch.weight.dtype)
    return like._replace(
        x=x.reshape(rows, *batch.x.shape[1:]).astype(batch.x.dtype),
        weight=weight,
        temperature=jnp.ones_like(weight),
        index=jnp.full(rows, -1, jnp.int32),  # of no row of the data
    )


def _for_head(memory: Dream, rows: Batch, logits: Float[Array, "b k"], head: int) -> Batch:
    """The rows with the old net's largest output among those of a head; weight 0 where no task behind had it."""
    rows = rows._replace(active=jnp.broadcast_to(memory.active[head], rows.active.shape))
    label = jnp.argmax(jnp.where(rows.active, logits, -jnp.inf), axis=1)
    target = jax.nn.one_hot(label, rows.target.shape[1], dtype=rows.target.dtype)
    return rows._replace(target=target, weight=jnp.where(head < memory.tasks, rows.weight, 0))


def _learn(net: Vae, optimizer, memory: Dream, rows: Batch, noise: Float[Array, "b z"]) -> tuple[Params, PyTree]:
    """One update of the generator on the weighted rows."""
    flat = rows.x.reshape(rows.x.shape[0], -1)

    def loss(params: Params) -> Float[Array, ""]:
        losses = jax.vmap(net.loss, (None, 0, 0))(params, flat, noise)
        return jnp.sum(jnp.where(rows.weight > 0, rows.weight * losses, 0))

    updates, opt_state = optimizer.update(jax.grad(loss)(memory.generator), memory.opt_state, memory.generator)
    return optax.apply_updates(memory.generator, updates), opt_state


EXAMPLES = {
    "generative_replay": generative_replay(hidden=(5,), latent=2, likelihood="gaussian", optimizer=optax.sgd(0.05))
}
