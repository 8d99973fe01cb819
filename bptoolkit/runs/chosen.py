"""Numbers that a sweep chose for each combination, as plain data that a run takes up and records.

{"how": a sentence, "values": {"net/strategy/scenario": {field: value}}}
"""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bptoolkit.continual.experiment import Experiment
from bptoolkit.runs.fields import check_fields
from bptoolkit.runs.record import RunError, read_json
from bptoolkit.runs.sweep import CHOICE, best, label

if TYPE_CHECKING:
    import xarray

__all__ = ["choice_of", "load_choice", "with_choice"]


def choice_of(results: "xarray.Dataset", how: str) -> dict[str, Any]:
    """The best point of each combination of a sweep.

    Args:
        results: of `sweep`, on validation rows.
        how: the choice was made, for the record.
    """
    found = {f"{one.net}/{one.strategy}/{one.scenario}": dict(one.values) for one in best(results)}
    return {"how": how, "values": found}


def load_choice(path: Path | str) -> dict[str, Any]:
    """What a sweep has chosen: its chosen.json, or its folder.

    Raises:
        RunError: no such file, or one of another form.
    """
    path = Path(path)
    path = path / CHOICE if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path} is missing. Make it with sweep.py NAME --over FIELD VALUES… --validate TASKS.")
    held = read_json(path)
    how, values = held.get("how"), held.get("values")
    if not (isinstance(how, str) and isinstance(values, dict) and all(isinstance(v, dict) for v in values.values())):
        raise RunError(f'{path} must hold "how", a sentence, and "values" for each combination. Make it anew.')
    return {"how": how, "values": values}


def with_choice(experiments: Mapping[str, Experiment], config: Any, choice: Mapping[str, Any]) -> dict[str, Experiment]:
    """The experiments with the numbers that were chosen for them; those without a choice as they are.

    Args:
        experiments: by "net/strategy/scenario".
        config: the dataclass that they are defined by, to whose ranges the choice is held; or its fields, by name.
        choice: as `load_choice` gives it.

    Raises:
        RunError: a choice for none of them; a chosen value that is out of its field's range; one of a field that is not
            traced and is another here.
    """
    values = choice["values"]
    if not set(values) & set(experiments):
        raise RunError(
            f"The choice must be for combinations of this run, such as {next(iter(experiments))}, got one for "
            f"{', '.join(values) or 'none'}. Sweep over this experiment."
        )
    return {name: _with(name, one, config, values.get(name, {})) for name, one in experiments.items()}


def _check_range(name: str, config: Any, values: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(config)}
    try:
        check_fields(replace(config, **{field: value for field, value in values.items() if field in known}))
    except ValueError as error:
        raise RunError(f"The choice for {name} must be in the ranges of its fields: {error} Choose anew.") from error


def _with(name: str, experiment: Experiment, config: Any, values: Mapping[str, Any]) -> Experiment:
    plain = config
    if is_dataclass(config):
        plain = {field.name: getattr(config, field.name) for field in fields(config)}
        _check_range(name, config, {k: value for k, value in values.items() if k in experiment.hyper})
    for field, value in values.items():
        held = plain.get(field)
        here = label(tuple(held) if isinstance(held, list) else held)
        if field not in experiment.hyper and here != value:
            words = re.sub(r"[(),]+", " ", str(value)).split()  # as flags are given
            raise RunError(
                f"{field} = {value} was chosen for {name}, and it is no traced number: the run has "
                f"{field} = {here} for all combinations. Give --{field.replace('_', '-')} {' '.join(words)}."
            )
    return replace(experiment, hyper={k: values.get(k, held) for k, held in experiment.hyper.items()})
