"""`Experiment.diagnose`: the matrices of a run against `diagnose` on the weights of that time, and against NumPy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.continual.layout import Layout
from bptoolkit.continual.streams import gather
from bptoolkit.fixed_point import almeida_pineda, implicit, picard
from bptoolkit.learning.losses import binary_cross_entropy
from bptoolkit.models import equilibrium, mlp, rate_cell

MODEL = mlp(4, 5, 6, activation=jnp.tanh)  # no features that are all 0, from which all means are equally far
ROWS, TESTED = (5, 7, 2, 6, 4, 5), 8  # of each class
ALL = 2 * TESTED  # test rows of a task; the training rows of any task are fewer
SEEDS = 2
STACKED, IN_TURN = Layout(1, True), Layout(1, False)
WAYS = cl.Diagnosis._fields


@pytest.fixture(scope="module")
def clouds():
    return data.gaussian_classes(jax.random.key(1), 6, ROWS, 4, spread=0.7, test_rows=TESTED)


def experiment(clouds, learner, scenario="class", rows=ALL, **options):
    stream = cl.split(clouds, 2, scenario)
    return cl.Experiment(stream, learner, optax.sgd(0.3, 0.8), **({"steps": 8, "batch": 4} | options), diagnose=rows)


def carried_out(made, layout=STACKED, state=None):
    """The result, and the states after each task."""
    states = []
    keep = lambda moment, state: states.append(state)
    return cl.run(made, jax.random.key(0), SEEDS, layout=layout, state=state, on_task=keep), states


def all_rows(stream, seed):
    """Training and test rows of all tasks of a seed, task after task."""
    indices = stream.draw(jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 4)[0])

    def of(rows, view):
        task = jnp.repeat(jnp.arange(stream.tasks, dtype=jnp.int32), view.count)
        row = jnp.concatenate([index[:count] for index, count in zip(view.index, view.count, strict=True)])
        return gather(rows, stream.data.scale, indices, task, row)

    return of(stream.data.train, indices.train), of(stream.data.test, indices.test)


def progress_of(state, seed):
    return jax.tree.map(lambda leaf: leaf[seed], state.progress)


@pytest.fixture(scope="module")
def naive(clouds):
    made = experiment(clouds, learning.backprop(MODEL))
    return made, *carried_out(made)


def agrees(made, result, states, learner, seeds=(0,)):
    """The matrices are what `diagnose` tells of the learner then; one row may fall otherwise, by rounding."""
    for seed in seeds:
        train, test = all_rows(made.stream, seed)
        for task, state in enumerate(states, start=1):
            then = progress_of(state, seed)
            by_hand = cl.diagnose(learner, then.params, train, test, memory=then.memory)
            for way in WAYS:
                found = getattr(result.diagnosis, way)[seed, task]
                np.testing.assert_allclose(found, getattr(by_hand, way), atol=1e-12, err_msg=way)


def test_the_matrices_are_what_diagnose_tells_of_the_weights_then(naive):
    """Of all rows.  Negative control: the matrices of one time are not those of the next."""
    made, result, states = naive
    for values in result.diagnosis:
        assert values.shape == (SEEDS, 4, 3)
    agrees(made, result, states, made.learner, range(SEEDS))
    for values in result.diagnosis:
        assert np.abs(np.diff(values, axis=1)).max() > 0.01


def test_plain_masked_nearest_mean_and_scores_by_plain_loops(naive):
    """In NumPy, row by row, for the weights at the end of each task."""
    made, result, states = naive
    unit = lambda f: f / np.linalg.norm(f, axis=-1, keepdims=True)
    for seed in range(SEEDS):
        train, test = (jax.tree.map(np.asarray, rows) for rows in all_rows(made.stream, seed))
        for after, state in enumerate(states, start=1):
            (w, b), (v, c) = ((np.asarray(p["w"]), np.asarray(p["b"])) for p in progress_of(state, seed).params)
            hidden = lambda x, w=w, b=b: np.tanh(x @ w + b)
            label, known = train.target.argmax(1), unit(hidden(train.x))
            means = unit(np.array([known[label == k].mean(0) for k in range(6)]))
            for on in range(3):
                mine = test.task == on
                own, y = np.unique(label[train.task == on]), test.target.argmax(1)[mine]
                h = hidden(test.x[mine])
                logits = h @ v + c
                p = np.exp(logits - logits.max(1, keepdims=True))
                p = p / p.sum(1, keepdims=True)
                near = ((unit(h)[:, None] - means) ** 2).sum(-1)
                place = np.minimum((p.max(1) * 15).astype(int), 14)
                right = p.argmax(1) == y
                gaps = [abs((right[place == k] - p.max(1)[place == k]).sum()) for k in range(15)]
                by_hand = {
                    "plain": np.mean(right),
                    "masked": np.mean(own[logits[:, own].argmax(1)] == y),
                    "nearest_mean": np.mean(near.argmin(1) == y),
                    "calibration_error": sum(gaps) / len(y),
                    "brier_score": np.mean(((p - np.eye(6)[y]) ** 2).sum(1)),
                }
                for name, value in by_hand.items():
                    found = getattr(result.diagnosis, name)[seed, after, on]
                    np.testing.assert_allclose(found, value, atol=1e-9, err_msg=name)


def test_plain_is_accuracy_where_all_rows_are_taken_and_masked_is_no_less(naive):
    _, result, _ = naive
    found = result.diagnosis
    np.testing.assert_array_equal(found.plain[:, 1:], result.accuracy)
    np.testing.assert_array_equal(found.plain[:, 0], result.untrained)
    assert (found.masked >= found.plain).all()
    assert found.masked.mean() > found.plain.mean() + 0.1


def test_of_few_rows_those_spread_evenly_over_each_task_are_taken(clouds, naive):
    """Four of sixteen: every fourth.  Negative control: the first four give other matrices."""
    made = experiment(clouds, learning.backprop(MODEL), rows=4)
    result, states = carried_out(made)
    other = []
    for seed in range(SEEDS):
        _, test = all_rows(made.stream, seed)
        then = progress_of(states[-1], seed)
        logits, _ = made.learner.predict((), then.params, test)
        score = lambda rows, logits=logits, test=test: cl.brier_score(
            logits[rows], jax.tree.map(lambda leaf: leaf[rows], test)
        )
        for on in range(3):
            first = ALL * on
            np.testing.assert_allclose(
                result.diagnosis.brier_score[seed, -1, on], score(np.arange(first, first + ALL, 4)), atol=1e-12
            )
            other.append(abs(result.diagnosis.brier_score[seed, -1, on] - score(np.arange(first, first + 4))))
    assert max(other) > 1e-3
    assert carried_out(experiment(clouds, learning.backprop(MODEL), rows=None))[0].diagnosis is None


GATED = {
    "xdg": cl.xdg(0.4)(learning.backprop(MODEL)),
    "packnet": cl.packnet()(learning.backprop(MODEL)),
    "hat": cl.hat()(learning.backprop(MODEL)),
}


@pytest.mark.parametrize("name", GATED)
def test_what_gates_by_tasks_is_asked_under_its_gates(name, clouds):
    """Plain is the accuracy of the run, and all is what `diagnose` finds with the learner.  Negative control: the bare
    weights answer otherwise."""
    made = experiment(clouds, GATED[name], "task")
    result, states = carried_out(made)
    np.testing.assert_array_equal(result.diagnosis.plain[:, 1:], result.accuracy)
    np.testing.assert_array_equal(result.diagnosis.masked, result.diagnosis.plain)  # only own outputs are active
    agrees(made, result, states, made.learner)
    train, test = all_rows(made.stream, 0)
    bare = cl.diagnose(MODEL, progress_of(states[-1], 0).params, train, test)
    ours = cl.Diagnosis(*(getattr(result.diagnosis, way)[0, -1] for way in WAYS))
    assert max(np.abs(a - b).max() for a, b in zip(bare, ours, strict=True)) > 0


def test_strayed_rows_make_no_output_one_of_a_task(clouds):
    """The untrained net is the same, and so are test rows: masked to two outputs a task, however many rows stray."""
    asked = experiment(clouds, learning.backprop(MODEL), steps=2)
    one, other = (
        carried_out(dataclasses.replace(asked, stream=cl.blurry(asked.stream, share)))[0].diagnosis
        for share in (0.0, 1.0)
    )
    np.testing.assert_array_equal(one.masked[:, 0], other.masked[:, 0])
    np.testing.assert_array_equal(one.plain[:, 0], other.plain[:, 0])
    assert np.any(one.masked[:, 0] != one.plain[:, 0])


def test_separate_nets_answer_and_show_no_features(clouds):
    made = experiment(clouds, cl.separate(learning.backprop(MODEL)), "task")
    result, states = carried_out(made)
    np.testing.assert_array_equal(result.diagnosis.plain[:, 1:], result.accuracy)
    assert np.isnan(result.diagnosis.nearest_mean).all()
    assert np.isnan(result.diagnosis.linear_probe).all()
    assert np.isfinite(result.diagnosis.brier_score).all()
    train, test = all_rows(made.stream, 0)
    with pytest.raises(ValueError, match="got a learner with a net for every task"):
        cl.diagnose(made.learner, *progress_of(states[-1], 0)[:1], train, test)


def test_icarl_is_asked_for_its_nearest_means(clouds):
    """Of its exemplars: plain is the accuracy of the run, which the logits of its net do not have."""
    made = experiment(clouds, cl.icarl(2)(learning.backprop(MODEL, binary_cross_entropy)))
    result, states = carried_out(made)
    np.testing.assert_array_equal(result.diagnosis.plain[:, 1:], result.accuracy)
    agrees(made, result, states, made.learner)
    train, test = all_rows(made.stream, 0)
    bare = cl.diagnose(MODEL, progress_of(states[-1], 0).params, train, test)
    assert np.abs(bare.plain - result.diagnosis.plain[0, -1]).max() > 0


@pytest.mark.parametrize("learner", ["shallow", "generative"])
def test_without_features_the_answers_are_told_all_the_same(learner, clouds):
    made = {
        "shallow": learning.backprop(mlp(4, 6)),
        "generative": cl.generative_classifier(4, 6, hidden=(3,), latent=2, samples=2, likelihood="gaussian"),
    }[learner]
    result, _ = carried_out(experiment(clouds, made, steps=2))
    np.testing.assert_array_equal(result.diagnosis.plain[:, 1:], result.accuracy)
    assert np.isnan(result.diagnosis.linear_probe).all()
    assert np.isfinite(result.diagnosis.calibration_error).all()


def test_a_net_that_settles_is_read_at_its_settled_states(clouds):
    net = equilibrium(rate_cell(4, 5, 6), implicit(picard(), almeida_pineda()))
    made = experiment(clouds, learning.backprop(net), steps=4)
    result, states = carried_out(made, IN_TURN)
    np.testing.assert_array_equal(result.diagnosis.plain[:, 1:], result.accuracy)
    agrees(made, result, states, made.learner)


def test_a_run_taken_up_again_has_the_same_findings_bit_for_bit(naive):
    made, result, states = naive
    again, _ = carried_out(made, state=states[0])
    chex.assert_trees_all_equal(again.diagnosis, result.diagnosis)
    chex.assert_trees_all_equal(again.params, result.params)
    with pytest.raises(ValueError, match="one of the two has a probe or a diagnosis, the other none"):
        carried_out(cl.Experiment(made.stream, made.learner, made.optimizer, 8, 4), state=states[0])


def test_it_changes_nothing_else(clouds, naive):
    """Weights and accuracies are those of a run that is not diagnosed; another layout finds the same."""
    made, result, _ = naive
    without, _ = carried_out(experiment(clouds, made.learner, rows=None))
    chex.assert_trees_all_equal(without.params, result.params)
    np.testing.assert_array_equal(without.accuracy, result.accuracy)
    in_turn, _ = carried_out(made, IN_TURN)
    chex.assert_trees_all_close(in_turn.diagnosis, result.diagnosis, atol=1e-9)


@pytest.mark.parametrize("rows", [0, 10_001])
def test_it_needs_rows(clouds, rows):
    with pytest.raises(ValueError, match=r"diagnose must be (1 … 10,000 rows a task, or None|at least 1), got"):
        experiment(clouds, learning.backprop(MODEL), rows=rows)
