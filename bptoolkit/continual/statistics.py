"""Do two learners differ?  Paired seeds: the same tasks, first weights and batches, so that a seed's luck cancels.

    d_s = a_s − b_s,     mean d ± t(n − 1, 97.5 %) · s_d / √n,     effect size d̄ / s_d

The permutation test asks how often the mean would be as far from zero if each d_s had its sign by a coin: all 2ⁿ signs
are counted, so p is exact under the one assumption that a and b are exchangeable within a seed.  With n seeds p cannot
be below 2/2ⁿ: no difference whatever is significant at 5 % with fewer than six seeds, and `Comparison.reason` says so.

Reference: Fisher (1935), The Design of Experiments, ch. 3; Demšar (2006), JMLR 7, on comparing learners.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["Comparison", "compare", "permutation_test", "seeds_needed"]

EXACT_UP_TO = 40  # differences: two halves of a million sums of signs each
ROUNDING = 2.0**-21  # of a mean of several float32 accuracies, and twice that: differences below it are none


class Comparison(NamedTuple):
    """Two learners over the same n seeds."""

    n: int
    difference: float  # mean of a − b
    half_width: float  # of Student's 95 % interval; NaN for one seed
    effect: float  # mean over standard deviation of the differences; NaN where that is rounding or n is 1
    p: float  # two-sided, exact; NaN beyond 40 seeds
    smallest_p: float  # that n seeds could give
    reason: str | None  # why this many seeds cannot tell; None where they can


def compare(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], alpha: float = 0.05) -> Comparison:
    """The difference of two learners over paired seeds.

    Values may come from float32: what they differ by through its rounding counts as a tie.

    Args:
        a, b: one value a seed, such as `average_accuracy(result)`; the same seeds in the same order.
        alpha: level that n is judged by.

    Raises:
        ValueError: of different lengths, or empty; values that are not finite.
    """
    d = _paired(a, b)
    _require_finite(d)
    rounding = ROUNDING * max(float(np.abs(a).max()), float(np.abs(b).max()))
    n, spread = len(d), d.std(ddof=1) if len(d) > 1 else math.nan
    smallest = 2 / 2**n if n > 1 else 1.0
    reason = None
    if smallest > alpha:
        reason = (
            f"too few seeds: with {n} no difference can have p below {smallest:.2g}; "
            f"{seeds_needed(alpha)} seeds are needed for {alpha:.2g}"
        )
    if n > EXACT_UP_TO:
        reason = f"too many seeds to count all signs: {n}, at most {EXACT_UP_TO}; the interval holds"
    half = math.nan if n < 2 else float(_t(n - 1) * spread / math.sqrt(n))
    effect = float(d.mean() / spread) if n > 1 and spread > rounding else math.nan
    p = permutation_test(d, n * rounding) if n <= EXACT_UP_TO else math.nan
    return Comparison(n, float(d.mean()), half, effect, p, smallest, reason)


def permutation_test(differences: Float[np.ndarray, "n"], rounding: float = 0.0) -> float:
    """The share of the 2ⁿ sign patterns whose sum is at least as far from zero: two-sided, exact.

    Ties count as far; sums that agree to `rounding`, and in any case to that of float64, are ties.

    Raises:
        ValueError: none, more than 40, or values that are not finite.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or not 1 <= d.size <= EXACT_UP_TO:
        raise ValueError(f"An exact test takes 1 to {EXACT_UP_TO} differences, got shape {d.shape}.")
    _require_finite(d)
    sizes = np.abs(d)  # the signs of the differences themselves play no part in the set of all patterns
    bound = abs(d.sum()) - max(rounding, 1e-12 * sizes.sum())
    if bound <= 0:
        return 1.0
    one, other = (np.sort(_sums(half)) for half in (sizes[::2], sizes[1::2]))
    far = one.size - np.searchsorted(one, bound - other, side="left")  # of one half, for each sum of the other
    return float(2 * far.sum(dtype=np.int64) / (one.size * other.size))  # −s is a sum where s is


def _sums(sizes: Float[np.ndarray, "n"]) -> Float[np.ndarray, "2**n"]:
    """Of all patterns of signs."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums + size, sums - size])
    return sums


def _require_finite(d: Float[np.ndarray, "n"]) -> None:
    if not np.isfinite(d).all():
        raise ValueError("The differences must be finite: leave out seeds that diverged, and say so.")


def seeds_needed(alpha: float) -> int:
    """The smallest n with 2/2ⁿ ≤ alpha."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}.")
    return max(2, math.ceil(math.log2(2 / alpha)))


def _paired(a, b) -> Float[np.ndarray, "n"]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"Paired seeds need one value a seed from each learner, got shapes {a.shape} and {b.shape}.\n"
            "Run both on the same seeds, and give say average_accuracy(result) of each."
        )
    return a - b


def _t(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))
