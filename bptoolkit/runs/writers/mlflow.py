"""MLflow: one of its experiments for each of ours, one of its runs for each combination."""

import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from bptoolkit.runs.background import in_background
from bptoolkit.runs.flat import flat
from bptoolkit.runs.record import run_name
from bptoolkit.runs.watch import Sink, Watcher, guarded, per_combination
from bptoolkit.runs.writers.needed import needed

__all__ = ["mlflow"]

ENDED = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def mlflow(uri: str) -> Watcher:
    """Write to an MLflow server, or to a folder (`file:///…`): metrics by update, the configuration as parameters.

    A run that is taken up again goes on in the MLflow run that it left unfinished.  Calls are made from a thread of
    their own; MLflow itself tries again for minutes where a server is gone.

    Args:
        uri: of the tracking server or store.

    Raises:
        RunError: MLflow is not installed.
    """
    needed("mlflow", "mlflow", "Writing to MLflow")
    if urlsplit(uri).scheme in ("", "file"):  # MLflow asks for this word before it writes to a folder
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    written = per_combination(lambda config, name, step: _sink(uri, config, name))
    return in_background(guarded(written, "MLflow"), "MLflow")


def _sink(uri: str, config: Mapping[str, Any], name: str) -> Sink:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(uri)
    run = _unfinished(client, config, name)
    client.log_batch(run, params=[Param(key, value) for key, value in flat(config)])

    def log(values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        client.log_batch(run, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    return Sink(log, lambda state: client.set_terminated(run, ENDED[state]))


def _unfinished(client: Any, config: Mapping[str, Any], name: str) -> str:
    """The MLflow run that this combination left unfinished, or a new one."""
    title = config["experiment"].rsplit(".", 1)[-1]
    known = client.get_experiment_by_name(title)
    experiment = client.create_experiment(title) if known is None else known.experiment_id
    tags = {"bptoolkit.run": run_name(config), "bptoolkit.combination": name}
    same = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment], f"{same} and attributes.status != 'FINISHED'", max_results=1)
    if found:
        client.update_run(found[0].info.run_id, "RUNNING")
        return found[0].info.run_id
    return client.create_run(experiment, run_name=name, tags=tags).info.run_id
