"""Where the progress of a run can be written to, beside its own log: one constructor of a `Watcher` in each file.

Each needs its own package (`pip install bptoolkit[tensorboard,mlflow,wandb]`), and none can stop a run: what fails
warns once and is silent from then on.
"""

from bptoolkit.runs.writers.mlflow import mlflow
from bptoolkit.runs.writers.tensorboard import tensorboard
from bptoolkit.runs.writers.wandb import wandb

__all__ = ["mlflow", "tensorboard", "wandb"]
