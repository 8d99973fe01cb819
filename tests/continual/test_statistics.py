"""Comparisons of paired seeds against full enumeration, SciPy and worked examples."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bptoolkit import continual as cl
from bptoolkit.continual.statistics import seeds_needed


def by_enumeration(d):
    patterns = list(itertools.product([1, -1], repeat=len(d)))
    far = [abs(np.dot(signs, d)) >= abs(np.sum(d)) - 1e-12 for signs in patterns]
    return np.mean(far)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 11])
def test_the_test_counts_every_pattern_of_signs(n):
    rng = np.random.default_rng(n)
    for d in (rng.normal(size=n), rng.normal(size=n) + 1, np.ones(n), rng.integers(-2, 3, n).astype(float)):
        assert cl.permutation_test(d) == pytest.approx(by_enumeration(d), abs=1e-12)


def test_ties_of_float32_accuracies_are_ties():
    """Differences that are whole numbers of rows: enumerated in integers, and in float32 with as many rows a task.

    Negative control: without rounding, some tied patterns fall short and p is too small.
    """
    rng, rows, tasks = np.random.default_rng(5), 71, 5
    short = 0
    for _ in range(40):
        right = rng.integers(40, 60, (2, 10, tasks))
        a, b = (right / rows).astype(np.float32).mean(-1, dtype=np.float32)
        exact = by_enumeration((right[0] - right[1]).sum(-1).astype(float))
        assert cl.compare(a, b).p == pytest.approx(exact, abs=1e-12)
        short += cl.permutation_test(a.astype(float) - b) < exact - 1e-9
    assert short > 2


def test_differences_that_are_the_same_but_for_rounding_have_no_effect_size():
    base = np.linspace(0.5, 0.8, 6, dtype=np.float32)
    same = cl.compare(base + np.float32(0.1), base)
    assert np.isnan(same.effect)
    assert same.difference == pytest.approx(0.1, rel=1e-6)


def test_it_is_scipys_exact_test():
    d = np.random.default_rng(0).normal(0.5, 1, 8)
    theirs = stats.permutation_test(
        (d, np.zeros(8)),
        lambda a, b, axis=-1: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert cl.permutation_test(d) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_under_no_difference_p_is_as_often_small_as_it_says():
    """2000 draws of ten symmetric differences: P(p ≤ 0.05) is at most 0.05, within 4 standard deviations of it.

    Negative control: with a true difference it is small far more often.
    """
    rng = np.random.default_rng(1)
    share = lambda shift: np.mean([cl.permutation_test(rng.normal(shift, 1, 8)) <= 0.05 for _ in range(1000)])
    assert abs(share(0.0) - 12 / 256) < 4 * np.sqrt(0.05 * 0.95 / 1000)  # 12 of the 256 patterns make p ≤ 0.05
    assert share(1.5) > 0.8


def test_five_seeds_can_never_be_significant_and_say_so():
    clear = cl.compare(np.full(5, 0.9) + np.arange(5) / 100, np.full(5, 0.1))
    assert clear.p == clear.smallest_p == 2 / 32
    assert clear.reason == ("too few seeds: with 5 no difference can have p below 0.062; 6 seeds are needed for 0.05")
    assert cl.compare(np.full(6, 0.9) + np.arange(6) / 100, np.full(6, 0.1)).reason is None
    assert cl.compare(np.full(6, 0.9) + np.arange(6) / 100, np.full(6, 0.1), alpha=2 / 64).reason is None
    assert [seeds_needed(a) for a in (0.05, 0.01, 0.5)] == [6, 8, 2]


def test_interval_and_effect_are_the_textbooks():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.6, 0.1, 9), rng.normal(0.5, 0.1, 9)
    found = cl.compare(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval()
    assert (found.difference - found.half_width, found.difference + found.half_width) == pytest.approx((low, high))
    assert found.effect == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1))
    swapped = cl.compare(b, a)
    assert (swapped.difference, swapped.effect, swapped.p) == pytest.approx((-found.difference, -found.effect, found.p))


def test_up_to_forty_seeds_are_counted_exactly():
    """38 differences of 1 and two of 0: the share of 2³⁸ patterns with at least 30 signs alike, from the binomial."""
    d = np.concatenate([np.ones(34), -np.ones(4), np.zeros(2)])
    assert cl.permutation_test(d) == pytest.approx(2 * stats.binom.cdf(4, 38, 0.5), rel=1e-12)
    assert cl.permutation_test(np.ones(40)) == 2 / 2**40


def test_beyond_that_the_interval_stays():
    a, b = np.random.default_rng(3).normal(0.5, 0.1, (2, 41))
    found = cl.compare(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval()
    assert (found.difference - found.half_width, found.difference + found.half_width) == pytest.approx((low, high))
    assert np.isnan(found.p)
    assert found.reason == "too many seeds to count all signs: 41, at most 40; the interval holds"


def test_one_seed_has_no_interval():
    one = cl.compare(np.array([0.9]), np.array([0.1]))
    assert np.isnan([one.half_width, one.effect]).all()
    assert one.p == 1
    assert "too few seeds" in one.reason


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: cl.compare(np.ones(3), np.ones(4)),
            r"one value a seed from each learner, got shapes \(3,\) and \(4,\)",
        ),
        (lambda: cl.compare(np.ones((2, 2)), np.ones((2, 2))), "one value a seed"),
        (lambda: cl.permutation_test(np.ones(41)), "takes 1 to 40 differences"),
        (lambda: cl.compare(np.array([1, np.nan]), np.ones(2)), "must be finite"),
        (lambda: cl.permutation_test(np.array([1, np.nan])), "must be finite"),
        (lambda: seeds_needed(0.0), "alpha must be between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
