"""What a sequence of tasks did to a net, from R[i, j] = accuracy on task j after training task i.

Every function takes a `Result`, or an array whose last two axes are (after, on), without the untrained row, and returns
one value per leading index (per seed).  Where a measure is undefined the value is NaN; `reason` says why.
"""

from typing import Any

import numpy as np

__all__ = [
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "intransigence",
    "learning_accuracy",
    "reason",
]


def average_accuracy(result: Any) -> np.ndarray:
    """ACC = (1/T) Σ_j R[T, j]."""
    return _matrix(result)[..., -1, :].mean(-1)


def learning_accuracy(result: Any) -> np.ndarray:
    """(1/T) Σ_i R[i, i]: how well each task was learned when its turn came."""
    return _diagonal(_matrix(result)).mean(-1)


def forgetting(result: Any) -> np.ndarray:
    """F = mean over j < T of (max over l < T of R[l, j]) − R[T, j]; in [−1, 1], NaN for one task.

    Reference: Chaudhry et al. (2018), ECCV, equation 3.
    """
    r = _matrix(result)
    if r.shape[-1] < 2:
        return _undefined(r)
    return (r[..., :-1, :-1].max(-2) - r[..., -1, :-1]).mean(-1)


def backward_transfer(result: Any) -> np.ndarray:
    """BWT = 1/(T − 1) Σ_{i<T} (R[T, i] − R[i, i]); NaN for one task.

    Reference: Lopez-Paz & Ranzato (2017), NeurIPS.
    """
    r = _matrix(result)
    if r.shape[-1] < 2:
        return _undefined(r)
    return (r[..., -1, :-1] - _diagonal(r)[..., :-1]).mean(-1)


def forward_transfer(result: Any, untrained: Any = None) -> np.ndarray:
    """FWT = 1/(T − 1) Σ_{i≥2} (R[i − 1, i] − b[i]), b the accuracies of the untrained net; NaN without them.

    Args:
        result: a `Result`, which has its untrained row, or an array.
        untrained: (…, on); that of the Result if left out.

    Reference: Lopez-Paz & Ranzato (2017), NeurIPS.
    """
    r = _matrix(result)
    b = getattr(result, "untrained", None) if untrained is None else untrained
    if r.shape[-1] < 2 or b is None:
        return _undefined(r)
    before = np.diagonal(r, offset=1, axis1=-2, axis2=-1)
    return (before - np.asarray(b)[..., 1:]).mean(-1)


def intransigence(result: Any, joint: Any) -> np.ndarray:
    """I = mean over k of a*_k − R[k, k], a*_k the accuracy on task k of a net trained jointly on tasks 1 … k.

    Args:
        result: of the learner in question.
        joint: of the same seeds under the strategy `joint`.

    Reference: Chaudhry et al. (2018), ECCV, definition 2; the paper's I_k is one term.
    """
    return (_diagonal(_matrix(joint)) - _diagonal(_matrix(result))).mean(-1)


def reason(metric: str, tasks: int, seeds: int | None = None) -> str | None:
    """Why a metric of this many tasks has no value, or no interval; None where it has."""
    if tasks < 2 and metric in ("forgetting", "backward_transfer", "forward_transfer"):
        return "undefined with one task"
    if seeds is not None and seeds < 2:
        return "no interval from one seed"
    return None


def _matrix(result: Any) -> np.ndarray:
    r = np.asarray(getattr(result, "accuracy", result))
    if r.ndim < 2 or r.shape[-1] != r.shape[-2] or r.shape[-1] == 0:
        raise ValueError(f"Accuracies must be a square array (…, after, on), got shape {r.shape}. Leave out row 0.")
    return r


def _diagonal(r: np.ndarray) -> np.ndarray:
    return np.diagonal(r, axis1=-2, axis2=-1)


def _undefined(r: np.ndarray) -> np.ndarray:
    return np.full(r.shape[:-2], np.nan)
