"""Small streams, and learners taken through their tasks: through the ends alone, or trained in one small program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data
from bptoolkit.continual.streams import gather, spec
from bptoolkit.learning.fit import Progress, train
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


class Stage(NamedTuple):
    """Where a stage ended, and what is answered to the rows of every task."""

    progress: Progress
    loss: jax.Array  # (steps,)
    logits: jax.Array  # (tasks, rows, k)


@pytest.fixture(scope="session")
def clouds():
    """Three tasks of two classes, four rows each if not told otherwise: eight rows a task."""
    return lambda scenario="class", rows=4: cl.split(
        data.gaussian_classes(jax.random.key(1), 6, rows, 4, spread=0.3), 2, scenario
    )


@pytest.fixture(scope="session")
def drive():
    """The class `Driven`."""
    return Driven


def all_rows(stream, indices, task):
    row = indices.train.index[task]
    return gather(stream.data.train, 1.0, indices, jnp.broadcast_to(task, row.shape).astype(jnp.int32), row)


def as_task(stream, indices, number):
    batch = all_rows(stream, indices, number)
    return Task(
        number=number,
        count=indices.train.count[number],
        rows_max=stream.rows_max,
        rows=lambda place: jax.tree.map(lambda leaf: leaf[place], batch),
        slot=lambda place: indices.slot[number, stream.data.train.y[indices.train.index[number][place]]],
    )


class Driven:
    """A learner on a stream: `begin()`, then `stage(progress, 0)`, `stage(…, 1)`, …; every step sees the whole task.

    `run()` makes all stages; `accuracy(stage)` is what the training rows of each task are answered with.
    """

    def __init__(self, learner, stream, optimizer=None, steps=4):
        self.learner, self.stream, self.steps = learner, stream, steps
        self.optimizer = optax.sgd(0.05) if optimizer is None else optimizer
        self.indices = jax.jit(stream.draw)(jax.random.key(0))
        self.spec = spec(stream)._replace(steps=steps)
        self.stage = jax.jit(self._stage)

    def begin(self, seed=0):
        params_key, memory_key = jax.random.split(jax.random.key(seed))
        params = self.learner.model.init(params_key)
        return Progress(params, self.optimizer.init(params), self.learner.init(params, self.spec, memory_key))

    def rows(self, task):
        return all_rows(self.stream, self.indices, jnp.int32(task))

    def task(self, number):
        return as_task(self.stream, self.indices, jnp.int32(number))

    def run(self, seed=0):
        stages, progress = [], self.begin(seed)
        for task in range(self.stream.tasks):
            stages.append(self.stage(progress, task))
            progress = stages[-1].progress
        return stages

    def accuracy(self, stage):
        found = []
        for task, logits in enumerate(np.asarray(stage.logits)):
            rows = self.rows(task)
            seen = np.where(rows.active, logits, -np.inf)
            found.append(np.mean(seen.argmax(1) == np.asarray(rows.target).argmax(1)))
        return np.array(found)

    def _stage(self, progress, number):
        number = jnp.int32(number)
        start_key, train_key, end_key = jax.random.split(jax.random.fold_in(jax.random.key(7), number), 3)
        params, memory = self.learner.start_task(progress.memory, progress.params, number, start_key)
        restart = self.learner.curriculum.reset_optimizer
        opt_state = self.optimizer.init(params) if restart else progress.opt_state
        batch = all_rows(self.stream, self.indices, number)
        draw = lambda step, key: batch
        progress, curves = train(
            self.learner, self.optimizer, draw, Progress(params, opt_state, memory), train_key, self.steps
        )
        params, memory = self.learner.end_task(
            progress.memory, progress.params, as_task(self.stream, self.indices, number), end_key
        )
        progress = progress._replace(params=params, memory=memory)
        tasks = jnp.arange(self.stream.tasks, dtype=jnp.int32)
        answer = lambda task: self.learner.predict(memory, params, all_rows(self.stream, self.indices, task))[0]
        return Stage(progress, curves.loss, jax.lax.map(answer, tasks))
