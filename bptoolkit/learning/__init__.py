"""How a model learns: losses, learning rules, the error of every unit, and training on one data set."""

from bptoolkit.learning.attribution import Attribution, attribution
from bptoolkit.learning.fit import Curves, Fitted, Progress, fit, train
from bptoolkit.learning.learner import Curriculum, Learner, LearningRule, Strategy, StreamSpec, Task
from bptoolkit.learning.losses import binary_cross_entropy, cross_entropy, squared_error
from bptoolkit.learning.rules import backprop
from bptoolkit.learning.warm import Starts, warm_backprop

__all__ = [
    "Attribution",
    "Curriculum",
    "Curves",
    "Fitted",
    "Learner",
    "LearningRule",
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
    "squared_error",
    "train",
    "warm_backprop",
]
