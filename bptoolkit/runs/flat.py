"""Nested plain data as lines, for a table, or for a store that knows names and values only."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["flat"]


def flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested plain data as lines "outer.inner", value.

    >>> list(flat({"config": {"rate": 0.1, "hidden": [100, 50]}, "seeds": 3}))
    [('config.rate', '0.1'), ('config.hidden', '100, 50'), ('seeds', '3')]
    """
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
