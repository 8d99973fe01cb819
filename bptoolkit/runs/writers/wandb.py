"""Weights & Biases: one group for each run, one of its runs for each combination."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bptoolkit.runs.flat import flat
from bptoolkit.runs.record import run_name
from bptoolkit.runs.watch import Sink, Watcher, guarded, per_combination
from bptoolkit.runs.writers.needed import needed

__all__ = ["wandb"]


def wandb(project: str, folder: Path | str) -> Watcher:
    """Write to a project of Weights & Biases: metrics by update, with the configuration.

    Log in first (`wandb login`), or set WANDB_MODE=offline: then `wandb sync` sends later what lies in `folder`.
    A run that is taken up again makes new W&B runs in the same group.

    Args:
        project: its name.
        folder: where W&B keeps its own files, under wandb/.

    Raises:
        RunError: wandb is not installed.
    """
    package = needed("wandb", "wandb", "Writing to Weights & Biases")
    written = per_combination(lambda config, name, step: _sink(package, project, Path(folder), config, name))
    return guarded(written, "Weights & Biases")


def _sink(package: Any, project: str, folder: Path, config: Mapping[str, Any], name: str) -> Sink:
    folder.mkdir(parents=True, exist_ok=True)
    run = package.init(
        project=project,
        group=run_name(config),
        name=name,
        config=dict(flat(config)),
        dir=folder,
        reinit="create_new",
        settings=package.Settings(silent=True, console="off"),
    )

    def log(values: Mapping[str, float], step: int) -> None:
        run.log(dict(values), step=step)

    return Sink(log, lambda state: run.finish(0 if state == "finished" else 1))
