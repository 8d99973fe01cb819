"""The share of runs that succeeded, and how far a sample of them can be trusted."""

import math
from statistics import NormalDist

__all__ = ["wilson"]


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion: the shares p with |p̂ − p| ≤ z √(p (1 − p)/n), in closed form

        (p̂ + z²/2n ± z √(p̂ (1 − p̂)/n + z²/4n²)) / (1 + z²/n).

    Unlike p̂ ± z √(p̂ (1 − p̂)/n) it stays in [0, 1], and is no point where none or all succeeded.

    Args:
        successes: 0 … trials.
        trials: independent ones, at least 1.
        level: probability that the interval should hold the true share.

    Raises:
        ValueError: no trials, or successes that are not among them.

    Reference: Wilson (1927), Journal of the American Statistical Association 22.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must be in 0 … trials, with trials at least 1, got {successes} of {trials}.")
    z, share = NormalDist().inv_cdf((1 + level) / 2), successes / trials
    middle = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low, high = ((middle + side) / (1 + z**2 / trials) for side in (-half, half))
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)
