"""Dark experience replay: stored rows are met again with the logits that the net gave them when they came by.

    DER      L = L_now + α · mean over rows and outputs of (o(x′) − z′)²
    DER++    the same + β · L on further stored rows with their labels

Both add rows to the batch, so they work with every learning rule; rows of temperature ∞ match logits (see
`learning.losses`).  Penalties such as EWC's belong outside, `ewc(…)(der(…)(rule))`: what is inside is scaled with the
loss.

Reference: Buzzega, Boschini, Porrello, Abati & Calderara (2020), NeurIPS.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.continual.buffers import (
    Reservoir,
    add,
    check_room,
    concatenate,
    new_reservoir,
    some,
    weigh,
)
from bptoolkit.continual.nesting import around, require_logits
from bptoolkit.continual.strengths import check_nonnegative, check_whole
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["der", "der_plus_plus"]

Strength: TypeAlias = Float[Array, ""] | float


class Dark(NamedTuple):
    """A reservoir of rows with their logits, and the strengths."""

    inner: Memory
    kept: Reservoir
    alpha: Float[Array, ""]
    beta: Float[Array, ""]


def der(capacity: int, alpha: Strength, rows: int | None = None) -> Strategy:
    """Dark experience replay, by a reservoir of all rows that came by; no task boundary is used.

    Args:
        capacity: rows kept; at least one per class of the stream.
        alpha: of the logits' squared error, a mean over rows and active outputs; at least 0, may be traced.
        rows: replayed rows a step; as many as the batch has if left out.

    Raises:
        ValueError: less than one row, fewer than there are classes, a negative strength; a learner that does not answer
            with the outputs of one net (`icarl`, `separate`).
    """
    return _dark(capacity, alpha, None, rows)


def der_plus_plus(capacity: int, alpha: Strength, beta: Strength, rows: int | None = None) -> Strategy:
    """DER, and β times the loss on as many further stored rows with their labels.

    Args:
        capacity, alpha, rows: as for `der`.
        beta: of the labels' loss; at least 0, may be traced.

    Raises:
        ValueError: less than one row, fewer than there are classes, a negative strength; a learner that does not answer
            with the outputs of one net (`icarl`, `separate`).
    """
    return _dark(capacity, alpha, beta, rows)


def _dark(capacity: int, alpha: Strength, beta: Strength | None, rows: int | None) -> Strategy:
    check_whole(capacity=capacity, rows=rows)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value is not None:
            check_nonnegative(name, value)

    def strategy(learner: Learner) -> Learner:
        require_logits(learner, "der" if beta is None else "der_plus_plus")

        def init(params: Params, spec: StreamSpec, key: Key) -> Dark:
            check_room("capacity", capacity, max(spec.classes, spec.outputs))
            kept = new_reservoir(spec, capacity, spec.example.target)
            number = lambda value: jnp.asarray(value, jnp.result_type(float))
            return Dark(learner.init(params, spec, key), kept, number(alpha), number(0 if beta is None else beta))

        def gradient(memory: Dark, params: Params, batch: Batch, key: Key) -> tuple[PyTree, Info, Dark]:
            inner_key, *draw_keys = jax.random.split(key, 3)
            wanted = batch.x.shape[0] if rows is None else rows
            parts = [weigh(batch, 1), dark_rows(memory, draw_keys[0], wanted)]
            if beta is not None:
                parts.append(weigh(some(memory.kept, draw_keys[1], wanted)[0], memory.beta.astype(batch.weight.dtype)))
            mixed = concatenate(*parts)
            grads, info, inner = learner.gradient(memory.inner, params, mixed, inner_key)
            total = jnp.sum(mixed.weight)  # the rule takes a mean, the loss is a sum
            loss = None if info.loss is None else total * info.loss
            return trees.scale(total, grads), info._replace(loss=loss), memory._replace(inner=inner)

        def after_step(memory: Dark, before: Params, after: Params, opt_state, batch: Batch, key: Key):
            inner_key, lot_key = jax.random.split(key)
            logits, _ = learner.predict(memory.inner, before, batch)
            params, opt_state, inner = learner.after_step(memory.inner, before, after, opt_state, batch, inner_key)
            kept = add(memory.kept, batch, lot_key, logits.astype(batch.target.dtype))
            return params, opt_state, memory._replace(inner=inner, kept=kept)

        return around(learner, init=init, gradient=gradient, after_step=after_step)

    return strategy


def dark_rows(memory: Dark, key: Key, rows: int) -> Batch:
    """Stored rows whose targets are their logits, weighed so that ½ Σ (z − o)² adds up to α times the mean square."""
    again, logits = some(memory.kept, key, rows)
    again = weigh(again, memory.alpha.astype(again.weight.dtype))
    outputs = jnp.sum(again.active, axis=1, dtype=again.weight.dtype)
    return again._replace(
        target=logits,
        weight=again.weight * 2 / jnp.maximum(outputs, 1),
        temperature=jnp.full_like(again.weight, jnp.inf),
    )


EXAMPLES = {"der": der(6, 0.5), "der_plus_plus": der_plus_plus(6, 0.5, 0.5)}
