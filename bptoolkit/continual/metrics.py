"""What a sequence of tasks did to a net, from R[i, j] = accuracy on task j after training task i.

Every function takes a `Result`, or an array whose last two axes are (after, on), without the untrained row, and returns
one value per leading index (per seed).  Where a measure is undefined the value is NaN; `reason` says why.
"""

import itertools
from typing import Any

import numpy as np

__all__ = [
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "intransigence",
    "learning_accuracy",
    "minimum_accuracy",
    "reason",
    "stability_gap",
    "worst_case_accuracy",
]


# These say something of a task after another was learned.
COMPARING = (
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "minimum_accuracy",
    "worst_case_accuracy",
    "stability_gap",
)


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
    before, b = np.diagonal(r, offset=1, axis1=-2, axis2=-1), np.asarray(b)
    if b.shape[-1:] != r.shape[-1:] or b.shape[:-1] not in ((), r.shape[:-2]):
        raise ValueError(f"untrained must have one accuracy a task, {r.shape[:-2] + r.shape[-1:]}, got {b.shape}.")
    return (before - b[..., 1:]).mean(-1)


def intransigence(result: Any, joint: Any) -> np.ndarray:
    """I = mean over k of a*_k − R[k, k], a*_k the accuracy on task k of a net trained jointly on tasks 1 … k.

    Args:
        result: of the learner in question.
        joint: of the same seeds under the strategy `joint`.

    Raises:
        ValueError: other seeds or tasks.

    Reference: Chaudhry et al. (2018), ECCV, definition 2; the paper's I_k is one term.
    """
    above, own = _matrix(joint), _matrix(result)
    if above.shape != own.shape:
        raise ValueError(f"joint must be of the same seeds and tasks, {own.shape}, got {above.shape}.")
    return (_diagonal(above) - _diagonal(own)).mean(-1)


def minimum_accuracy(result: Any, ends: Any = None) -> np.ndarray:
    """min-ACC: mean over j < T of the lowest accuracy on task j at any evaluation after its stage; NaN for one task.

    Args:
        result: a `Result` or R; or accuracies (…, evaluations, on), with `ends`.  A Result that was tested within its
            tasks is judged by all of these tests.
        ends: which evaluation is the last of each task, where there were others between; (T,), rising.

    Reference: De Lange, van de Ven & Tuytelaars (2023), ICLR, equation 2.
    """
    a, ends = _evaluations(result, ends)
    if len(ends) < 2:
        return _undefined(a)
    lows = [a[..., end + 1 :, j].min(-1) for j, end in enumerate(ends[:-1])]
    return np.mean(lows, axis=0)


def worst_case_accuracy(result: Any, ends: Any = None) -> np.ndarray:
    """WC-ACC = (1/T) · accuracy on task T now + (1 − 1/T) · min-ACC; NaN for one task.  Arguments as above.

    A bound from below of the average accuracy now.  Reference: De Lange et al. (2023), equation 3.
    """
    a, places = _evaluations(result, ends)
    tasks = len(places)
    return a[..., places[-1], -1] / tasks + (1 - 1 / tasks) * minimum_accuracy(result, ends)


def stability_gap(evaluations: Any, ends: Any = None) -> np.ndarray:
    """Mean over j < T of how far task j falls below both ends of the stage that follows it, and so recovers.

    gap_j = min(A[end of j], A[end of j + 1]) − min of A over the evaluations between, on task j; at least 0.

    Args:
        evaluations: a `Result` with tests within its tasks (`Experiment.evaluate_every`), or (…, evaluations, on).
        ends: (T,) which evaluation is the last of each task.  Two tasks with no evaluation between them give NaN: the
            gap was not looked for.

    Reference: De Lange et al. (2023), section 3, who name it; this number for it is ours.
    """
    a, ends = _evaluations(evaluations, ends)
    if len(ends) < 2 or np.diff(ends).min() < 2:
        return _undefined(a)
    gaps = []
    for j, (end, after) in enumerate(itertools.pairwise(ends)):
        low = a[..., end + 1 : after, j].min(-1)
        gaps.append(np.maximum(np.minimum(a[..., end, j], a[..., after, j]) - low, 0))
    return np.mean(gaps, axis=0)


def reason(metric: str, tasks: int, seeds: int | None = None) -> str | None:
    """Why a metric of this many tasks has no value, or no interval; None where it has."""
    if tasks < 2 and metric in COMPARING:
        return "undefined with one task"
    if seeds is not None and seeds < 2:
        return "no interval from one seed"
    return None


def _matrix(result: Any) -> np.ndarray:
    r = np.asarray(getattr(result, "accuracy", result))
    if r.ndim < 2 or r.shape[-1] != r.shape[-2] or r.shape[-1] == 0:
        raise ValueError(f"Accuracies must be a square array (…, after, on), got shape {r.shape}. Leave out row 0.")
    return r


def _evaluations(result: Any, ends: Any) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies (…, evaluations, on), and the place of the last evaluation of each task."""
    within = getattr(result, "within", None)
    if ends is None and within is not None:
        return _evaluations(within, result.ends)
    if ends is None:
        r = _matrix(result)
        return r, np.arange(r.shape[-1])
    a, ends = np.asarray(result), np.asarray(ends)
    if a.ndim < 2 or ends.shape != a.shape[-1:] or ends.size == 0:
        raise ValueError(f"ends must say the last evaluation of each of {a.shape[-1:]} tasks, got shape {ends.shape}.")
    if (np.diff(ends) < 1).any() or ends[0] < 0 or ends[-1] >= a.shape[-2]:
        raise ValueError(f"ends must rise within the {a.shape[-2]} evaluations, got {ends.tolist()}.")
    return a, ends


def _diagonal(r: np.ndarray) -> np.ndarray:
    return np.diagonal(r, axis1=-2, axis2=-1)


def _undefined(r: np.ndarray) -> np.ndarray:
    return np.full(r.shape[:-2], np.nan)
