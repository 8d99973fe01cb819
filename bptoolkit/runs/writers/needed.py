"""Import a package that only some need."""

import importlib
from types import ModuleType

from bptoolkit.runs.record import RunError


def needed(module: str, extra: str, what: str) -> ModuleType:
    """The module, or one sentence on how to get it.

    Raises:
        RunError: where it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RunError(
            f"{what} needs the package {error.name}, which is not installed. Do: pip install bptoolkit[{extra}]"
        ) from error
