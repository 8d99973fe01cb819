"""How a model learns: losses, learning rules, the error of every unit, and training on one data set."""

from bptoolkit.learning.attribution import Attribution, attribution
from bptoolkit.learning.fit import Curves, Fitted, Progress, fit, train
from bptoolkit.learning.learner import Curriculum, Learner, LearningRule, Strategy, StreamSpec, Task, rows_of
from bptoolkit.learning.losses import Loss, binary_cross_entropy, cross_entropy, mean_loss, squared_error
from bptoolkit.learning.rules import backprop
from bptoolkit.learning.warm import Starts, warm_backprop

__all__ = [
    "Attribution",
    "Curriculum",
    "Curves",
    "Fitted",
    "Learner",
    "LearningRule",
    "Loss",
    "Progress",
    "Starts",
    "Strategy",
    "StreamSpec",
    "Task",
    "attribution",
    "backprop",
    "binary_cross_entropy",
    "cross_entropy",
    "fit",
    "mean_loss",
    "rows_of",
    "squared_error",
    "train",
    "warm_backprop",
]
