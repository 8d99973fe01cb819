"""Wilson's interval against the equation that defines it, and against an independent implementation."""

import math
from statistics import NormalDist

import pytest
from scipy.stats import binomtest

from bptoolkit.runs.proportion import wilson

CASES = [(0, 1), (1, 1), (0, 100), (37, 100), (99, 100), (100, 100), (3, 7)]


@pytest.mark.parametrize(("successes", "trials"), CASES)
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_agrees_with_scipy(successes, trials, level):
    theirs = binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert wilson(successes, trials, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_each_end_is_just_compatible_with_what_was_seen():
    """At both ends p of the interval |p̂ − p| is z standard errors √(p (1 − p)/n), as they would be if p were true."""
    z = NormalDist().inv_cdf(0.975)
    for end in wilson(37, 100):
        assert abs(0.37 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 100))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"got {successes} of {trials}"):
        wilson(successes, trials)
