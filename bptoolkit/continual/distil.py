"""Learning without forgetting: what the net answered before a task, it should go on answering to the task's own rows.

    L = CE(x, y) + w · mean over past heads of CE_T(x, softmax(f_old(x) / T)),     CE_T on logits / T

The second term travels in the batch: further rows with the same x, soft targets, a temperature, the active outputs of
a past head, and weights.  So it works with every rule that follows a cross-entropy, and with nets that settle.
"""

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bptoolkit import trees
from bptoolkit.continual.nesting import adding, require_logits
from bptoolkit.continual.strengths import check_nonnegative, check_positive, traced
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.learning.losses import binary_cross_entropy, probabilities, squared_error
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["distilling_rows", "lwf"]

Weighting: TypeAlias = Literal["protocol", "one"]
Heads: TypeAlias = Literal["all", "drawn"]


class Taught(NamedTuple):
    """The net as it was when the last task ended, and what it could be asked."""

    inner: Memory
    teacher: Params
    heads: Bool[Array, "heads k"]  # active outputs of each past task; one where all tasks have the same
    tasks: Int[Array, ""]  # behind
    strength: Float[Array, ""]
    growth: Float[Array, ""]  # 1 where the weight grows with the tasks behind
    temperature: Float[Array, ""]


def lwf(
    strength: Float[Array, ""] | float = 1.0,
    *,
    temperature: Float[Array, ""] | float = 2.0,
    weighting: Weighting = "protocol",
    heads: Heads = "all",
) -> Strategy:
    """Learning without forgetting, by distillation from the net of the last task on the rows of the current one.

    With k − 1 tasks behind, w = strength · (k − 1) where tasks have heads or share one (scenarios "task" and
    "domain"), and strength in scenario "class", as in the code of van de Ven et al.  A past head is the set of
    outputs that were active in its task; where all tasks have the same, there is one.  No factor T² is applied.
    Nothing is stored but one copy of the weights.

    Args:
        strength: at least 0; may be traced.
        temperature: T > 0; may be traced.
        weighting: "protocol" as said above; "one" is w = strength always, as in the paper.
        heads: in scenario "task", "all" asks every past head, each with a copy of the batch: T − 1 times the rows.
            "drawn" asks one random past head a row: as many rows again, the same loss on average.

    Raises:
        ValueError: a negative strength, a temperature not above 0, an unknown option; a learner that does not follow a
            cross-entropy, or does not answer with the outputs of one net (`icarl`, `separate`).

    What is inside is scaled with the loss, so penalties such as EWC's belong outside: `ewc(…)(lwf(…)(rule))`.

    Reference: Li & Hoiem (2017), IEEE TPAMI 40; van de Ven, Tuytelaars & Tolias (2022), Nature MI 4.
    """
    check_nonnegative("strength", strength)
    check_positive("temperature", temperature)
    for name, value, kinds in (("weighting", weighting, Weighting), ("heads", heads, Heads)):
        if value not in get_args(kinds):
            raise ValueError(f"{name} must be one of {get_args(kinds)}, got {value!r}.")

    def strategy(learner: Learner) -> Learner:
        require_logits(learner, "lwf")
        _check_loss(learner)

        def init(inner: Memory, params: Params, spec: StreamSpec, key: Key) -> Taught:
            count = max(spec.tasks - 1, 1) if spec.scenario == "task" else 1
            grows = weighting == "protocol" and spec.scenario != "class"
            none = jnp.zeros((count, spec.outputs), bool)
            return Taught(inner, params, none, jnp.int32(0), traced(strength), traced(grows), traced(temperature))

        def gradient(memory: Taught, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Taught]:
            inner_key, draw_key = jax.random.split(key)
            rows = distilling_rows(memory, batch, draw_key if heads == "drawn" else None)
            logits, _ = learner.predict(memory.inner, memory.teacher, rows)
            soft = jax.vmap(probabilities)(logits, rows.active, rows.temperature).astype(rows.target.dtype)
            rows = rows._replace(target=soft)
            total = jnp.sum(batch.weight)
            now = batch._replace(weight=batch.weight / jnp.where(total > 0, total, 1))
            mixed = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), now, rows)
            grads, info, inner = learner.gradient(memory.inner, params, mixed, inner_key)
            total = jnp.sum(mixed.weight)  # the rule takes a mean, the loss is a sum
            loss = None if info.loss is None else total * info.loss
            return trees.scale(total, grads), info._replace(loss=loss), memory._replace(inner=inner)

        def end_task(memory: Taught, params: Params, task: Task, key: Key) -> tuple[Params, Taught]:
            active = task.rows(jnp.zeros(1, jnp.int32)).active[0]
            place = jnp.minimum(memory.tasks, memory.heads.shape[0])  # beyond the last there is nothing to ask later
            known = memory.heads.at[place].set(active, mode="drop")
            return params, memory._replace(teacher=params, heads=known, tasks=memory.tasks + 1)

        return adding(learner, init, end_task=end_task)._replace(gradient=gradient)

    return strategy


def distilling_rows(memory: Taught, batch: Batch, key: Key | None) -> Batch:
    """The batch once for every past head, or once with a drawn one, in weights that sum to w; targets not yet soft."""
    b, count = batch.weight.shape[0], memory.heads.shape[0]
    behind = jnp.minimum(memory.tasks, count)
    if key is None:
        head = jnp.repeat(jnp.arange(count, dtype=jnp.int32), b)
    else:
        head = jax.random.randint(key, (b,), 0, jnp.maximum(behind, 1), jnp.int32)
    copies = head.shape[0] // b
    rows = jax.tree.map(lambda leaf: jnp.tile(leaf, (copies, *[1] * (leaf.ndim - 1))), batch)
    w = memory.strength * jnp.where(memory.growth > 0, memory.tasks.astype(memory.strength.dtype), 1)
    weight = jnp.where(head < behind, rows.weight, 0)
    total = jnp.sum(weight)
    return rows._replace(
        active=memory.heads[head],
        weight=weight * w.astype(weight.dtype) / jnp.where(total > 0, total, 1),
        temperature=jnp.broadcast_to(memory.temperature.astype(rows.temperature.dtype), head.shape),
        task=head if count > 1 else rows.task,
    )


def _check_loss(learner: Learner) -> None:
    if learner.loss in (None, squared_error, binary_cross_entropy):
        name = "none" if learner.loss is None else getattr(learner.loss, "__name__", str(learner.loss))
        raise ValueError(
            f"lwf needs a learner that follows a cross-entropy of softmaxes, got one that follows {name}.\n"
            "Take backprop(model), or der, which matches logits under any loss."
        )


EXAMPLES = {"lwf": lwf(), "lwf with drawn heads": lwf(heads="drawn")}
