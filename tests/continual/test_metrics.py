"""Metrics against plain loops over random matrices, and against one example worked out on paper."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bptoolkit import continual as cl
from bptoolkit.continual.metrics import reason

# After each of three tasks, on each of three.  Task 1 goes 0.9, 0.5, 0.6 and task 2 goes 0.2, 0.8, 0.7.
R = np.array([[0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.6, 0.7, 1.0]])
UNTRAINED = np.array([0.1, 0.05, 0.2])
SINGLE = (cl.average_accuracy, cl.learning_accuracy, cl.forgetting, cl.backward_transfer)

share = st.floats(0, 1, allow_nan=False, width=64)
matrices = st.integers(2, 5).flatmap(lambda t: arrays(np.float64, (3, t, t), elements=share))
fast = settings(max_examples=60, deadline=None)


def accuracy_by_loop(r):
    return sum(r[-1][j] for j in range(len(r))) / len(r)


def learning_by_loop(r):
    return sum(r[i][i] for i in range(len(r))) / len(r)


def forgetting_by_loop(r):
    last = len(r) - 1
    drops = [max(r[after][on] for after in range(last)) - r[last][on] for on in range(last)]
    return sum(drops) / last


def backward_by_loop(r):
    last = len(r) - 1
    return sum(r[last][i] - r[i][i] for i in range(last)) / last


BY_LOOP = dict(zip(SINGLE, (accuracy_by_loop, learning_by_loop, forgetting_by_loop, backward_by_loop), strict=True))


@pytest.mark.parametrize("metric", SINGLE)
@fast
@given(matrices)
def test_a_metric_is_what_a_plain_loop_finds_seed_by_seed(metric, r):
    np.testing.assert_allclose(metric(r), [BY_LOOP[metric](one.tolist()) for one in r], atol=1e-14)


@fast
@given(matrices, st.data())
def test_forward_transfer_is_what_a_plain_loop_finds(r, more):
    tasks = r.shape[-1]
    b = more.draw(arrays(np.float64, (3, tasks), elements=share))
    expected = [
        sum(one[i - 1][i] - own[i] for i in range(1, tasks)) / (tasks - 1) for one, own in zip(r, b, strict=True)
    ]
    np.testing.assert_allclose(cl.forward_transfer(r, b), expected, atol=1e-14)


@fast
@given(matrices, st.data())
def test_intransigence_is_what_a_plain_loop_finds(r, more):
    joint = more.draw(arrays(np.float64, r.shape, elements=share))
    expected = [np.mean([a[k][k] - one[k][k] for k in range(len(a))]) for a, one in zip(joint, r, strict=True)]
    np.testing.assert_allclose(cl.intransigence(r, joint), expected, atol=1e-14)


@fast
@given(matrices)
def test_bounds_and_laws(r):
    """Forgetting is in [−1, 1], and never less than what backward transfer lost: the maximum is over more rows."""
    lost, back = cl.forgetting(r), cl.backward_transfer(r)
    assert (np.abs(lost) <= 1).all()
    assert (np.abs(back) <= 1).all()
    assert (lost >= -back - 1e-12).all()
    tasks = r.shape[-1]
    by_parts = cl.learning_accuracy(r) + (tasks - 1) / tasks * back
    np.testing.assert_allclose(cl.average_accuracy(r), by_parts, atol=1e-14)  # ACC = LA + (T − 1)/T · BWT


def test_the_worked_example():
    """Forgetting ((0.9 − 0.6) + (0.8 − 0.7))/2; FWT ((0.2 − 0.05) + (0.3 − 0.2))/2."""
    assert cl.average_accuracy(R) == pytest.approx(2.3 / 3)
    assert cl.learning_accuracy(R) == pytest.approx(2.7 / 3)
    assert cl.forgetting(R) == pytest.approx(0.2)
    assert cl.backward_transfer(R) == pytest.approx(-0.2)
    assert cl.forward_transfer(R, UNTRAINED) == pytest.approx(0.125)
    assert cl.intransigence(R, np.ones((3, 3))) == pytest.approx(0.1)


def test_the_peak_of_forgetting_may_come_after_a_task_was_learned():
    """Task 1 is best after task 2: forgetting counts from there, backward transfer from the diagonal."""
    r = R.copy()
    r[1, 0] = 1.0
    assert cl.forgetting(r) == pytest.approx((0.4 + 0.1) / 2)
    assert cl.backward_transfer(r) == pytest.approx(-0.2)


def test_the_last_row_is_no_candidate_for_the_peak():
    """A net that only gains forgets less than nothing; with the last row in the maximum it would be zero."""
    r = np.array([[0.5, 0.1], [0.9, 0.8]])
    assert cl.forgetting(r) == pytest.approx(-0.4)
    assert (r.max(0) - r[-1])[:-1].mean() == 0  # what some libraries compute


def test_backward_transfer_divides_by_the_tasks_that_have_a_past():
    """The sum is −0.4; divided by T = 3 it would be −0.133."""
    assert cl.backward_transfer(R) == pytest.approx(-0.4 / 2)
    assert cl.backward_transfer(R) != pytest.approx(-0.4 / 3)


@pytest.mark.parametrize("name", ["forgetting", "backward_transfer", "forward_transfer"])
def test_one_task_gives_nan_and_says_why(name):
    r = np.full((4, 1, 1), 0.7)
    arguments = (r, np.full((4, 1), 0.1)) if name == "forward_transfer" else (r,)
    value = getattr(cl, name)(*arguments)
    assert value.shape == (4,)
    assert np.isnan(value).all()
    assert reason(name, tasks=1) == "undefined with one task"
    assert reason(name, tasks=2) is None


def test_what_one_task_does_define():
    r = np.full((4, 1, 1), 0.7)
    np.testing.assert_allclose(cl.average_accuracy(r), 0.7)
    np.testing.assert_allclose(cl.learning_accuracy(r), 0.7)
    assert reason("average_accuracy", tasks=1) is None
    assert reason("average_accuracy", tasks=1, seeds=1) == "no interval from one seed"


def test_forward_transfer_without_an_untrained_net_is_nan():
    assert np.isnan(cl.forward_transfer(R))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (4, 3), (2, 4, 3), (0, 0)])
@pytest.mark.parametrize("metric", SINGLE)
def test_a_matrix_that_is_not_square_is_refused(metric, shape):
    """(4, 3) would be one with the untrained row still in it."""
    with pytest.raises(ValueError, match=r"must be a square array .* Leave out row 0"):
        metric(np.zeros(shape))


def test_matrices_of_other_seeds_or_tasks_are_refused():
    r = np.full((5, 3, 3), 0.5)
    for joint in (r[:1], r[:3], r[:, :2, :2], r[0]):
        with pytest.raises(ValueError, match=r"joint must be of the same seeds and tasks, \(5, 3, 3\), got"):
            cl.intransigence(r, joint)
    for untrained in (np.zeros((4, 3)), np.zeros(2)):
        with pytest.raises(ValueError, match=r"one accuracy a task, \(5, 3\), got"):
            cl.forward_transfer(r, untrained)


def test_any_leading_axes_are_kept():
    r = np.random.default_rng(0).random((2, 5, 3, 3))
    for metric in SINGLE:
        assert metric(r).shape == (2, 5)
        np.testing.assert_allclose(metric(r)[1, 4], metric(r[1, 4]))


def minimum_by_loop(a, ends):
    lows = [min(a[e][j] for e in range(ends[j] + 1, len(a))) for j in range(len(ends) - 1)]
    return sum(lows) / len(lows)


@fast
@given(matrices)
def test_lowest_and_worst_case_accuracies_are_what_a_plain_loop_finds(r):
    tasks = r.shape[-1]
    expected = [minimum_by_loop(one.tolist(), range(tasks)) for one in r]
    np.testing.assert_allclose(cl.minimum_accuracy(r), expected, atol=1e-14)
    worst = r[:, -1, -1] / tasks + (1 - 1 / tasks) * np.array(expected)
    np.testing.assert_allclose(cl.worst_case_accuracy(r), worst, atol=1e-14)
    assert (cl.worst_case_accuracy(r) <= cl.average_accuracy(r) + 1e-12).all()  # a bound from below


def test_evaluations_between_the_ends_only_lower_the_minimum():
    """Two tasks, evaluated four times; task 1 falls to 0.3 in the second stage and comes back to 0.8."""
    a = np.array([[0.9, 0.1], [0.3, 0.5], [0.6, 0.6], [0.8, 0.9]])
    assert cl.minimum_accuracy(a, ends=[0, 3]) == pytest.approx(0.3)
    assert cl.minimum_accuracy(a[[0, 3]]) == pytest.approx(0.8)
    assert cl.worst_case_accuracy(a, ends=[0, 3]) == pytest.approx((0.9 + 0.3) / 2)
    assert cl.stability_gap(a, ends=[0, 3]) == pytest.approx(0.8 - 0.3)
    steady = np.array([[0.9, 0.1], [0.85, 0.5], [0.8, 0.9]])
    assert cl.stability_gap(steady, ends=[0, 2]) == 0  # it falls, but never below where it ends
    assert np.isnan(cl.stability_gap(a[[0, 3]], ends=[0, 1]))  # not looked for


def test_the_stability_gap_of_three_tasks_and_two_seeds():
    """Each task counts in the stage that follows its own, and there alone; tests 1, 4 and 7 end the stages.

    Seed 0: task 1 goes 0.9, 0.4, 0.6, 0.7 in stage 2, a gap of 0.7 − 0.4; task 2 goes 0.8, 0.7, 0.6, 0.85 in stage 3,
    a gap of 0.8 − 0.6.  Seed 1: task 1 goes 0.5, 0.6, 0.7, 0.8, which is no gap; task 2 goes 0.9, 0.3, 0.4, 0.5, a gap
    of 0.5 − 0.3.  Means 0.25 and 0.1.  What is lower outside of these stages, or in task 3, plays no part.
    """
    a = np.zeros((2, 8, 3))
    a[0, :, 0] = [0.1, 0.9, 0.4, 0.6, 0.7, 0.2, 0.1, 0.5]
    a[0, :, 1] = [0.0, 0.0, 0.1, 0.9, 0.8, 0.7, 0.6, 0.85]
    a[1, :, 0] = [0.2, 0.5, 0.6, 0.7, 0.8, 0.0, 0.3, 0.4]
    a[1, :, 1] = [0.1, 0.2, 0.0, 0.4, 0.9, 0.3, 0.4, 0.5]
    a[:, :, 2] = [0.3, 0.2, 0.1, 0.0, 0.4, 0.1, 0.9, 1.0]
    np.testing.assert_allclose(cl.stability_gap(a, ends=[1, 4, 7]), [0.25, 0.1], atol=1e-12)


@pytest.mark.parametrize("ends", [[0], [1, 0], [1, 1], [0, 4], [-1, 2], [0, 1, 2]])
def test_ends_that_do_not_fit_are_refused(ends):
    with pytest.raises(ValueError, match="ends must"):
        cl.minimum_accuracy(np.zeros((4, 2)), ends)
