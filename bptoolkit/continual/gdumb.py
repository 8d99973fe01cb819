"""GDumb: learn nothing while the tasks go by, keep a balanced sample, and train a new net on it whenever one is asked.

What a strategy must beat: any that does not has gained nothing from the order of the tasks, nor from all their rows.

Reference: Prabhu, Torr & Dokania (2020), ECCV.  Its greedy sampler ends with as many random rows of each class.
"""

from typing import NamedTuple

import jax
import optax

from bptoolkit import trees
from bptoolkit.continual.buffers import Buffer, draw, keep, new_buffer, of_each_class
from bptoolkit.continual.nesting import around, require_mixable
from bptoolkit.continual.strengths import check_whole
from bptoolkit.learning.fit import Progress, checked_optimizer, train
from bptoolkit.learning.learner import Learner, Strategy, StreamSpec, Task
from bptoolkit.types import Batch, Info, Key, Memory, Params, PyTree

__all__ = ["gdumb"]


class Sample(NamedTuple):
    """What is kept, and the memory that the learner inside starts with."""

    inner: Memory
    first: Memory
    kept: Buffer


def gdumb(
    per_class: int, *, steps: int, batch: int = 32, optimizer: optax.GradientTransformation | None = None
) -> Strategy:
    """At the end of each task train a new net, from new first weights, on `per_class` random rows of each class so far.

    The experiment's own steps change no weight; the loss that is reported is that of the net as it is, on rows that it
    does not learn.  A strategy around it would have no say in the new net, and is refused.

    Args:
        per_class: rows kept of each class of a task; all where a class has fewer.
        steps, batch: updates of the new net, and rows of each, drawn with replacement.
        optimizer: of the new net; `optax.adam(1e-3)` if left out.

    Raises:
        ValueError: a size below one; a strategy inside that isolates tasks, or looks at weights and rows beside the
            gradient: the new net has no past.
    """
    check_whole(per_class=per_class, steps=steps, batch=batch)
    optimizer = optax.adam(1e-3) if optimizer is None else checked_optimizer(optimizer)

    def strategy(learner: Learner) -> Learner:
        require_mixable(learner, "gdumb")
        if learner.looks_on:
            raise ValueError("gdumb trains a new net each time, which has no past: take penalties and rehearsal away.")

        def init(params: Params, spec: StreamSpec, key: Key) -> Sample:
            inner = learner.init(params, spec, key)
            return Sample(inner, inner, new_buffer((), spec, spec.classes_per_task * per_class))

        def gradient(memory: Sample, params: Params, rows: Batch, key: Key) -> tuple[PyTree, Info, Sample]:
            _, info, _ = learner.gradient(memory.inner, params, rows, key)
            return trees.zeros_like(params), info, memory

        def after_step(memory: Sample, before: Params, after: Params, opt_state, rows: Batch, key: Key):
            del after, rows, key
            return before, opt_state, memory

        def end_task(memory: Sample, params: Params, task: Task, key: Key) -> tuple[Params, Sample]:
            del params
            choice_key, salt_key, init_key, train_key = jax.random.split(key, 4)
            chosen = of_each_class(task, per_class, memory.kept.rows.weight.shape[1] // per_class, choice_key)
            kept = keep(memory.kept, task, chosen, salt_key)
            rows = lambda step, key: draw(kept, jax.random.fold_in(key, step), batch)
            params = learner.model.init(init_key)
            start = Progress(params, optimizer.init(params), memory.first)
            end, _ = train(learner, optimizer, rows, start, train_key, steps)
            return end.params, Sample(end.memory, memory.first, kept)

        outer = around(learner, init=init, gradient=gradient, after_step=after_step, end_task=end_task)
        return outer._replace(anew=True)

    return strategy


EXAMPLES = {"gdumb": gdumb(2, steps=5, batch=4, optimizer=optax.sgd(0.1))}
