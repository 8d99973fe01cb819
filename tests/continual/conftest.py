"""A small stream, and learners taken through the ends of its tasks without any training."""

import jax
import jax.numpy as jnp
import pytest

from bptoolkit import continual as cl
from bptoolkit import data
from bptoolkit.continual.streams import gather, spec
from bptoolkit.learning.learner import Task


@pytest.fixture(scope="session")
def clouds_by_task():
    """Six classes in three tasks, 5, 7, 2, 6, 4 and 5 rows of each."""
    return cl.split(data.gaussian_classes(jax.random.key(1), 6, (5, 7, 2, 6, 4, 5), 4, test_rows=2), 2)


@pytest.fixture(scope="session")
def rows_of_task():
    """The function (stream, indices, task, places) -> rows by position, as the runner hands them to `end_task`."""

    def rows(stream, indices, task, place):
        row = indices.train.index[task, place]
        batch = gather(stream.data.train, 1.0, indices, jnp.full_like(row, task), row)
        return batch._replace(weight=(place < indices.train.count[task]).astype(batch.weight.dtype))

    return rows


@pytest.fixture(scope="session")
def after_tasks(rows_of_task):
    """The function (stream, learner, tasks) -> weights, memory and tasks of a seed, when so many tasks have ended."""

    def go(stream, learner, tasks, seed=0):
        indices = jax.jit(stream.draw)(jax.random.key(seed))
        params = learner.model.init(jax.random.key(7))
        memory = learner.init(params, spec(stream), jax.random.key(0))

        def end(memory, task):
            ended = Task(
                number=jnp.int32(task),
                count=indices.train.count[task],
                rows_max=stream.rows_max,
                rows=lambda place: rows_of_task(stream, indices, task, place),
                slot=lambda place: indices.slot[task, stream.data.train.y[indices.train.index[task, place]]],
            )
            return learner.end_task(memory, params, ended, jax.random.fold_in(jax.random.key(100 + seed), task))[1]

        for task in range(tasks):
            memory = jax.jit(end, static_argnums=1)(memory, task)
        return params, memory, indices

    return go
