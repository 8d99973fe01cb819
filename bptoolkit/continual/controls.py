"""What every remedy is held against: doing nothing, and training on all tasks at once."""

from bptoolkit.learning.learner import Curriculum, Learner

__all__ = ["joint", "naive"]


def naive(learner: Learner) -> Learner:
    """Train on one task after the other and hope: the lower bound.  The identity."""
    return learner


def joint(learner: Learner) -> Learner:
    """At stage k train a new net on tasks 1 … k together, for k times the steps: the upper bound.

    Row k of its accuracies belongs to a net of its own, as `metrics.intransigence` asks; the last row is the usual
    "joint" figure.  With T tasks it costs (T + 1)/2 times what `naive` does.
    """
    together = Curriculum(sources=lambda tasks, k: tasks <= k, rounds=lambda k: k + 1, fresh=True)
    return learner._replace(curriculum=together)
