"""What every strategy does alike: it keeps a learner inside, and hands on to it what it does not change itself.

Its memory is a NamedTuple whose field `inner` is the memory of the learner inside.
"""

from collections.abc import Callable
from typing import Any

from bptoolkit.learning.learner import Learner
from bptoolkit.types import Batch, Key, Memory, Params

__all__ = ["around"]


def around(
    learner: Learner,
    *,
    init: Callable,
    gradient: Callable,
    after_step: Callable | None = None,
    end_task: Callable | None = None,
    predict: Callable | None = None,
) -> Learner:
    """The learner with these functions in place of its own; what is left out goes to the learner inside."""

    def after_inside(memory: Any, before: Params, after: Params, opt_state, batch: Batch, key: Key):
        params, opt_state, inner = learner.after_step(memory.inner, before, after, opt_state, batch, key)
        return params, opt_state, memory._replace(inner=inner)

    def end_inside(memory: Any, params: Params, task, key: Key) -> tuple[Params, Memory]:
        params, inner = learner.end_task(memory.inner, params, task, key)
        return params, memory._replace(inner=inner)

    def predict_inside(memory: Any, params: Params, batch: Batch):
        return learner.predict(memory.inner, params, batch)

    return learner._replace(
        init=init,
        gradient=gradient,
        after_step=after_step or after_inside,
        end_task=end_task or end_inside,
        predict=predict or predict_inside,
    )
