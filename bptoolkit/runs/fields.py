"""The fields of an experiment's Config, checked against their own annotations: types, choices, ranges.

A Config comes from flags, from config.json or from Python; all three are held to the same.  A range is written where
the field is: `rate: Annotated[float, Range(0)] = 1e-3`; and so is that a list must not be empty: `rates: Some[Amount]`.
"""

import dataclasses
import math
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

__all__ = ["Amount", "Count", "Positive", "Range", "Share", "Some", "Whole", "check_fields"]

T = TypeVar("T")
NOT_EMPTY = "not empty"  # of a tuple
MOST = 2**31 - 1  # of what is counted: it must fit an int32


class Range(NamedTuple):
    """Least and greatest value of a number, or what it must exceed; a whole number is at most `MOST` in any case."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf


Count: TypeAlias = Annotated[int, Range(1)]
Whole: TypeAlias = Annotated[int, Range(0)]
Amount: TypeAlias = Annotated[float, Range(0)]
Positive: TypeAlias = Annotated[float, Range(above=0)]
Share: TypeAlias = Annotated[float, Range(0, 1)]
Some: TypeAlias = Annotated[tuple[T, ...], NOT_EMPTY]


def check_fields(config: Any) -> None:
    """Raise unless every field of a dataclass is of its annotated type, one of its choices, and in its `Range`.

    Raises:
        ValueError: for the first field that is not: what it must be, and what it is.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        _check(field.name, getattr(config, field.name), hints[field.name], Range())


def _check(name: str, value: Any, kind: Any, range: Range) -> None:
    """One value against one annotation; tuples entry by entry."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        if NOT_EMPTY in parts[1:] and value == ():
            raise ValueError(f"{name} must have at least one value, got none. Leave it out for its default.")
        stated = [extra for extra in parts[1:] if isinstance(extra, Range)]
        _check(name, value, parts[0], stated[0] if stated else range)
    elif origin in (typing.Union, UnionType):
        if not (value is None and type(None) in parts):
            _check(name, value, next(part for part in parts if part is not type(None)), range)
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a list of values, got {value!r}.")
        for entry in value:
            _check(name, entry, parts[0], range)
    elif origin is typing.Literal:
        if value not in parts:
            raise ValueError(f"{name} must be one of {', '.join(map(str, parts))}, got {value!r}.")
    elif kind in (int, float):
        _check_number(name, value, kind, range)
    elif kind in (str, bool, Path) and not isinstance(value, kind):
        raise ValueError(f"{name} must be of the type {kind.__name__}, got {value!r}.")


def _check_number(name: str, value: Any, kind: type, range: Range) -> None:
    least, most = range.least, min(range.most, MOST) if kind is int else range.most
    noun = "a whole number" if kind is int else "a finite number"
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ValueError(f"{name} must be {noun}, got {value!r}.")
    stated = ((" above", range.above), (" of at least", least))
    floor = next((f"{words} {bound:g}" for words, bound in stated if bound > -math.inf), "")
    if not (math.isfinite(value) and value >= least and value > range.above):
        raise ValueError(f"{name} must be {noun}{floor}, got {value}.")
    if value > most:
        raise ValueError(f"{name} must be {noun} of at most {most:.10g}, got {value}.")
