"""Sweep any fields of an experiment, and keep what came out as one labelled array.

python scripts/sweep.py split_digits --over rate 1e-3 1e-2 --over strength 1 10 --over units 20 57 --seeds 5
python scripts/sweep.py split_digits --over hidden 50 100,50          a field of several values: with commas
python scripts/sweep.py split_digits --over strength 1 10 --validate 2 --key 1        choose on validation rows

All flags of scripts/run.py hold too.  Values of a field that is traced lie side by side in one compiled program, all
others are run one after the other.  The same command goes on where it was broken off, and repeats no finished cell.
A cell that fails is recorded, and the rest goes on; the exit code is 1 then.
"""

import dataclasses
import hashlib
import importlib
import json
import math
import sys
import typing
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from run import WIDTH, Options, choose, guarded, leave, parse, settle, watcher_of

from bptoolkit import continual as cl
from bptoolkit import runs
from bptoolkit.continual.choose import how_chosen
from bptoolkit.runs.chosen import choice_of
from bptoolkit.runs.devices import cache_folder
from bptoolkit.runs.fields import Count, check_fields
from bptoolkit.runs.processes import fatal, is_leader
from bptoolkit.runs.record import write_json
from bptoolkit.runs.sweep import CHOICE, Cell, Define, Plan, Swept, best, plan, sweep, undecided

ON_TEST = (
    "Chosen on the test rows, so the figure of a chosen point is too good: run it with other seeds, or sweep with "
    "--validate TASKS."
)
EVERY = 10  # training rows, of which one is kept out for validation


@dataclasses.dataclass(frozen=True)
class SweepOptions(Options):
    """What a sweep has and a run has not."""

    validate: Count | None = None  # test on training rows kept out of training, of the first so many tasks, and choose


def main(arguments: list[str]) -> int:
    return guarded(command, arguments)


def command(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    rest, asked = split(arguments)
    name, question = choose(rest)
    if name is None:
        console.print(f"{__doc__}\n{question}", highlight=False, soft_wrap=True)
        return 0
    module = importlib.import_module(f"experiments.{name}")
    config, options = parse(name, question, module, rest[1:], SweepOptions(), program="sweep.py")
    check_fields(options)
    return execute(console, name, question, module, config, options, values(type(config), asked))


def split(arguments: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The other arguments; and what stands behind each --over, by the field named first."""
    rest, over, into = [], {}, None
    for argument in arguments:
        if argument == "--over":
            into = []
            over[len(over)] = into
        elif argument.startswith("--"):
            into = None
            rest.append(argument)
        else:
            (rest if into is None else into).append(argument)
    named = {words[0].replace("-", "_"): words[1:] for words in over.values() if words}
    if len(named) < len(over):
        raise ValueError("Every --over needs a field of its own and its values, as in --over rate 1e-3 1e-2.")
    return rest, named


def values(config: type, asked: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    """Each word as its field's type reads it."""
    types = typing.get_type_hints(config)
    return {
        name: [value(name, types[name], word) if name in types else word for word in words]
        for name, words in asked.items()
    }


def value(name: str, kind: Any, word: str) -> Any:
    """One value; commas part those of a field that holds several."""
    words = word.split(",") if typing.get_origin(kind) is tuple else [word]
    try:
        return tyro.cli(typing.cast(type, Annotated[kind, tyro.conf.Positional]), args=words, console_outputs=False)
    except SystemExit:
        raise ValueError(f"--over {name} needs values of the type {kind}, got {word!r}.") from None


def execute(console: Console, name: str, question: str, module: Any, config: Any, options: SweepOptions, over) -> int:
    """Carry out all cells; print the best points and what failed."""
    record = {"experiment": f"experiments.{name}", "seeds": options.seeds, "key": options.key}
    if options.validate is not None:
        record["validate"] = options.validate
    digest = hashlib.sha256(json.dumps([record, dataclasses.asdict(config), over], sort_keys=True).encode()).hexdigest()
    folder = options.runs / f"sweep-{name}-{digest[:8]}"
    begun = (path.parent for path in sorted((folder / "cells").glob("*/environment.json")))
    settle(options, next(begun, folder))
    define = partial(defined, module.define, options.validate)
    asked = plan(define, config, over)
    if is_leader() and not options.quiet:
        traced = ", ".join(asked.traced) or "nothing"
        console.print(f"{len(asked.cells)} cells in turn; side by side in each: {traced}.", highlight=False)

    def carry(place: Path, config: Mapping[str, Any], cell: Cell):
        return runs.carry_out(
            place,
            config,
            define(cell.config),
            grid=asked.grid,
            layout=cl.Layout(data=options.data_devices),
            question=question,
            watcher=watcher_of(console, place, options) if is_leader() else None,
            again=options.again,
            save_every=options.save_every,
        ).results

    swept = sweep(folder, asked, carry, record, fatal=fatal)
    if is_leader():
        tell(console, folder, swept, kept(folder, asked, swept, options))
    return 1 if swept.failed else 0


def defined(define: Define, validate: int | None, config: Any) -> dict[str, cl.Experiment]:
    """The experiments of a configuration; on validation rows where these are asked for."""
    made = dict(define(config))
    if validate is None:
        return made
    return {
        name: dataclasses.replace(one, stream=cl.held_out(one.stream, EVERY, validate)) for name, one in made.items()
    }


def kept(folder: Path, asked: Plan, swept: Swept, options: SweepOptions) -> str:
    """Write down what was chosen, where it may be; and what is to be said of the choice."""
    if options.validate is None:
        return ON_TEST
    how = how_chosen(options.validate, EVERY, options.seeds) + without(asked, swept)
    write_json(folder / CHOICE, choice_of(swept.results, how))
    return f"Chosen by {how}. Take it up: run.py … --chosen {folder} with another --key."


def without(asked: Plan, swept: Swept) -> str:
    """The points that were no choice, as their cells failed."""
    if not swept.failed:
        return ""
    each = math.prod(len(values) for values in asked.grid.values())
    every, there = (each * count for count in (len(asked.cells), len(asked.cells) - len(swept.failed)))
    return f"; among {there} of {every} points, as these failed: {'; '.join(swept.failed)}"


def tell(console: Console, folder: Path, swept: Swept, remark: str) -> None:
    """The table, what is to be said of it, what failed, and where everything lies."""
    table = Table(title="Best average accuracy, %", title_justify="left")
    for title in ("Scenario", "Net", "Strategy", "At", "Accuracy"):
        table.add_column(title, overflow="fold")
    for point in best(swept.results):
        at = ", ".join(f"{name} {value}" for name, value in point.values.items())
        half = "" if math.isnan(point.half_width) else f" ± {100 * point.half_width:.1f}"  # none of one seed
        figure = f"{100 * point.mean:.1f}{half}"
        table.add_row(point.scenario, point.net, point.strategy, at, figure)
    console.print(table)
    console.print(remark, soft_wrap=True, highlight=False)
    if nowhere := undecided(swept.results):
        console.print(f"[bold red]Seeds diverged at every point of:[/] {', '.join(nowhere)}", soft_wrap=True)
    for cell, sentence in swept.failed.items():
        console.print(f"[bold red]Failed:[/] {escape(cell)}: {escape(sentence)}", soft_wrap=True, highlight=False)
    console.print(f"Array: {folder / 'sweep.nc'}", soft_wrap=True, highlight=False)
    console.print(f"Compiled programs are kept in {cache_folder()}.", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*donated.*")
    leave(main, sys.argv[1:])
