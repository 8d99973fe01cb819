"""Run an experiment over many seeds, and keep what came out.

python scripts/run.py --list                        all experiments, with their question
python scripts/run.py split_digits --seeds 10       run one
python scripts/run.py split_digits --help           all its flags
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bptoolkit import continual as cl  # noqa: E402  (the experiments lie beside this folder, not in a package)
from bptoolkit import runs  # noqa: E402
from bptoolkit.runs.collect import collect  # noqa: E402
from bptoolkit.runs.devices import prepare  # noqa: E402

EXPERIMENTS = ROOT / "experiments"
WIDTH = 110  # of tables that go to a file or a pipe


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run it."""

    seeds: int = 10  # nets per combination, numbered from 0
    key: int = 0  # of all randomness
    runs: Path = Path("runs")  # where run folders are made
    again: bool = False  # run once more even if this very run is there
    devices: int | None = None  # CPU devices; one per core if left out
    quiet: bool = False  # no progress display


def main(arguments: list[str]) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        name, question = choose(arguments)
        if name is None:
            console.print(question, highlight=False, soft_wrap=True)
            return 0
        module = importlib.import_module(f"experiments.{name}")
        config, options = parse(name, question, module, arguments[1:])
        check_options(options)
        prepare(jax.config, options.devices)
        return execute(console, name, question, module, config, options)
    except (ValueError, FileNotFoundError, runs.RunError) as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {error}", highlight=False, soft_wrap=True)
        return 2


def choose(arguments: list[str]) -> tuple[str | None, str]:
    """The experiment named first and its question; without one, None and what to print."""
    known = questions()
    listing = "\n".join(f"{name:16} {question}" for name, question in known.items())
    if not arguments or arguments[0] in ("-h", "--help"):
        return None, f"{__doc__}\nExperiments:\n{listing}"
    if arguments[0] == "--list":
        return None, listing
    if arguments[0] not in known:
        near = difflib.get_close_matches(arguments[0], known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"There is no experiment {arguments[0]!r}. Nearest: {', '.join(near)}. See --list.")
    return arguments[0], known[arguments[0]]


def questions() -> dict[str, str]:
    """Every file of experiments/ that defines one, and the first line of its docstring."""
    found = {}
    for path in sorted(EXPERIMENTS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "define" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def parse(name: str, question: str, module: Any, arguments: list[str]) -> tuple[Any, Options]:
    """The experiment's own fields and how to run it, from flags."""
    both = dataclasses.make_dataclass(
        "Flags",
        [
            ("config", Annotated[module.Config, tyro.conf.OmitArgPrefixes], dataclasses.field(default=module.Config())),
            ("options", Annotated[Options, tyro.conf.OmitArgPrefixes], dataclasses.field(default=Options())),
        ],
    )
    flags = tyro.cli(both, prog=f"run.py {name}", description=question, args=arguments)
    return flags.config, flags.options


def check_options(options: Options) -> None:
    """Raise unless there is something to run, and to run it on."""
    for name, value in (("seeds", options.seeds), ("devices", 1 if options.devices is None else options.devices)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")


def execute(console: Console, name: str, question: str, module: Any, config: Any, options: Options) -> int:
    """Run all combinations, unless this very run is there already; print the table."""
    record = {
        "experiment": f"experiments.{name}",
        "config": dataclasses.asdict(config),
        "seeds": options.seeds,
        "key": options.key,
    }
    experiments = module.define(config)  # refuses what cannot run before anything is written
    for experiment in experiments.values():
        experiment.check()
    run = runs.open_run(options.runs / runs.run_name(record), record, again=options.again)
    if run.found:
        console.print(f"This run is already in {run.folder} (--again repeats it).", soft_wrap=True)
        console.print(runs.terminal_table(runs.load_summary(run.folder)))
        return 0
    with closing(run.folder):
        began = time.perf_counter()
        results = run_all(console, experiments, options)
        chance = {e.split("/")[2]: chance_of(x.stream) for e, x in experiments.items()}
        table = collect(results, question, chance)
        runs.save_results(run.folder, table)
        summary = runs.save_summary(run.folder, table)
    runs.write_report(run.folder)
    console.print(runs.terminal_table(summary))
    if lost := [e for e, r in results.items() if not r.finite.all()]:
        console.print(f"[bold red]Weights became NaN or infinite in some seeds of:[/] {', '.join(lost)}")
    console.print(f"{time.perf_counter() - began:.0f} s. Report: {run.folder / 'report.html'}", soft_wrap=True)
    return 0


def run_all(console: Console, experiments: dict[str, cl.Experiment], options: Options) -> dict[str, cl.Result]:
    """Each experiment in turn, with one line of live progress."""
    columns = (
        TextColumn("{task.description:32}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %  {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    results = {}
    with Progress(*columns, console=console, disable=options.quiet) as display:
        whole = display.add_task("all", total=len(experiments), note="")
        for name, experiment in experiments.items():
            line = display.add_task(name, total=None, note="compiling")
            hook = lambda moment, _, line=line: display.update(
                line, total=moment.steps, completed=moment.step, note=note(moment)
            )
            results[name] = cl.run(experiment, jax.random.key(options.key), options.seeds, on_progress=hook)
            display.remove_task(line)
            display.advance(whole)
    return results


def note(moment: cl.Moment) -> str:
    """Task, loss and, for a net that settles, how often it did not."""
    unsettled = "" if moment.unconverged != moment.unconverged else f"  unconverged {moment.unconverged:.1%}"
    return f"task {moment.task + 1}/{moment.tasks}  loss {moment.loss:.3f}{unsettled}"


def chance_of(stream: cl.Stream) -> float:
    """Accuracy of guessing among the outputs in play."""
    return 1 / (stream.classes_per_task if stream.scenario == "task" else stream.outputs)


@contextlib.contextmanager
def closing(folder: Path):
    """Record how the run ended, whatever happens."""
    state = "failed"
    try:
        yield
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        runs.finish(folder, state)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*donated.*")
    sys.exit(main(sys.argv[1:]))
