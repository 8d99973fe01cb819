"""Run an experiment over many seeds, and keep what came out.

python scripts/run.py --list                        all experiments, with their question
python scripts/run.py split_digits --seeds 10       run one
python scripts/run.py split_digits --help           all its flags
python scripts/run.py --from runs/split_digits-…    repeat a run elsewhere, and tell what differs

A run that was broken off goes on where it was saved when the same command is given again.  Several processes, on one
machine or many, make one run together when each is started with the same command and its own --process (docs/scale.md).
"""

import ast
import dataclasses
import difflib
import importlib
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import jax
import tyro
from rich.console import Console
from rich.markup import escape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the experiments lie beside this folder

from bptoolkit import continual as cl
from bptoolkit import runs
from bptoolkit.runs.devices import cache_folder, group_of, prepare
from bptoolkit.runs.fields import Count, Range, Whole, check_fields
from bptoolkit.runs.lifeline import GONE, LOST
from bptoolkit.runs.processes import end, is_leader, lost

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
Devices = Annotated[int, Range(1, 1024)]
WIDTH = 110  # of tables that go to a file or a pipe
FAULT = 70  # the exit code of an error that nobody foresaw


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run it."""

    seeds: Count = 10  # nets per combination, numbered from 0
    key: Whole = 0  # of all randomness
    runs: Path = Path("runs")  # where run folders are made
    again: bool = False  # start anew even if this very run is there, finished or not
    save_every: Count | None = None  # updates between two checkpoints within a task; once a minute if left out
    devices: Devices | None = None  # CPU devices; if left out as many as the run began with, one per core for a new one
    data_devices: Devices = 1  # devices that split the rows of every batch; nets are shared out to the rest
    coordinator: str | None = None  # HOST:PORT of process 0, where several processes make one run; found on SLURM
    process: Whole | None = None  # which of them this is, from 0; found on SLURM
    processes: Count | None = None  # how many they are; found on SLURM
    quiet: bool = False  # no progress display
    tensorboard: bool = False  # also write TensorBoard's event files to tensorboard/ in the run folder
    mlflow: str | None = None  # also write to this MLflow server, or to a folder (file:///…)
    wandb: str | None = None  # also write to this project of Weights & Biases


SomeOptions = TypeVar("SomeOptions", bound=Options)


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """What a run has and a sweep has not."""

    chosen: Path | None = None  # the folder of a sweep with --validate: each combination gets what was chosen for it


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Repeat a run, and tell whether the same came out, bit for bit."""

    source: Annotated[Path, tyro.conf.arg(name="from")]  # its folder, which is only read
    into: Path | None = None  # the folder of the repetition; one that is removed afterwards if left out
    devices: Devices | None = None  # CPU devices; as many as the run had if left out
    quiet: bool = False  # no progress display


def main(arguments: list[str]) -> int:
    return guarded(command, arguments)


def command(arguments: list[str]) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if arguments and arguments[0].partition("=")[0] == "--from":
        asked = tyro.cli(Repeat, prog="run.py", args=arguments)
        check_fields(asked)
        return repeat(console, asked)
    name, question = choose(arguments)
    if name is None:
        console.print(f"{__doc__}\n{question}" if wants_help(arguments) else question, highlight=False, soft_wrap=True)
        return 0
    module = importlib.import_module(f"experiments.{name}")
    config, options = parse(name, question, module, arguments[1:], RunOptions())
    check_fields(options)
    return execute(console, name, question, module, config, options)


def guarded(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The exit code of a command; what the user can mend is told in a sentence."""
    try:
        return command(arguments)
    except runs.Interrupted as error:
        tell_error(f"{escape(str(error))} {onward(arguments)}")
        return error.exit_code
    except Exception as error:
        if lost(error):
            tell_error(f"[bold red]Error:[/] {GONE.format('Another process')}")
            return LOST
        if not isinstance(error, ValueError | FileNotFoundError | runs.RunError):
            raise
        tell_error(f"[bold red]Error:[/] {escape(str(error))}")
        return 2


def onward(arguments: list[str]) -> str:
    """How an interrupted command goes on."""
    flags = [argument.partition("=")[0] for argument in arguments]
    if "--from" in flags[:1] and "--into" not in flags:
        return "A repetition without --into is removed."
    return f"The same command{' without --again' if '--again' in flags else ''} goes on from there."


def leave(main: Callable[[list[str]], int], arguments: list[str]) -> NoReturn:
    """Run `main` and end the process, also after an error that nobody foresaw: no other process waits for this one.

    A Ctrl-C before the run has begun to listen for it, or a second one, ends this process alone.
    """
    try:
        code = main(arguments)
    except KeyboardInterrupt as error:
        tell_error(f"{str(error) or 'Interrupted'}. What was saved before is kept. {onward(arguments)}")
        end(128 + signal.SIGINT, alone=True)
    except Exception:
        traceback.print_exc()
        code = FAULT
    end(code)


def tell_error(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def wants_help(arguments: list[str]) -> bool:
    return not arguments or arguments[0] in ("-h", "--help")


def choose(arguments: list[str]) -> tuple[str | None, str]:
    """The experiment named first and its question; without one, None and what to print."""
    known = questions()
    if wants_help(arguments) or arguments[0] == "--list":
        return None, "\n".join(f"{name:16} {question}" for name, question in known.items())
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


def parse(
    name: str, question: str, module: Any, arguments: list[str], options: SomeOptions, program: str = "run.py"
) -> tuple[Any, SomeOptions]:
    """The experiment's own fields and how to run it, from flags; `options` are the defaults."""
    both = dataclasses.make_dataclass(
        "Flags",
        [
            ("config", Annotated[module.Config, tyro.conf.OmitArgPrefixes], dataclasses.field(default=module.Config())),
            ("options", Annotated[type(options), tyro.conf.OmitArgPrefixes], dataclasses.field(default=options)),
        ],
    )
    flags = tyro.cli(both, prog=f"{program} {name}", description=question, args=arguments)
    return flags.config, flags.options


def execute(console: Console, name: str, question: str, module: Any, config: Any, options: RunOptions) -> int:
    """Run all combinations, or what is left of them, unless this very run is there already; print the table."""
    record = {
        "experiment": f"experiments.{name}",
        "config": dataclasses.asdict(config),
        "seeds": options.seeds,
        "key": options.key,
    }
    if options.chosen is not None:
        record["chosen"] = runs.load_choice(options.chosen)
    folder, began = options.runs / runs.run_name(record), time.perf_counter()
    settle(options, folder)
    experiments = module.define(config)
    if options.chosen is not None:
        experiments = runs.with_choice(experiments, config, record["chosen"])
    outcome = runs.carry_out(
        folder,
        record,
        experiments,
        layout=cl.Layout(data=options.data_devices),
        question=question,
        watcher=watcher_of(console, folder, options) if is_leader() else None,
        again=options.again,
        save_every=options.save_every,
    )
    if not is_leader():
        return 0
    if outcome.found:
        console.print(f"This run is already in {folder} (--again repeats it).", soft_wrap=True)
    if not outcome.found or not (folder / "report.html").is_file():
        runs.write_report(folder)
    console.print(runs.terminal_table(runs.summarise(outcome.results)))
    if lost := diverged(outcome.results):
        console.print(f"[bold red]Weights became NaN or infinite in some seeds of:[/] {', '.join(lost)}")
    if not outcome.found:
        console.print(f"{time.perf_counter() - began:.0f} s. Report: {folder / 'report.html'}", soft_wrap=True)
        console.print(f"Compiled programs are kept in {cache_folder()}.", soft_wrap=True, highlight=False)
    return 0


def watcher_of(console: Console, folder: Path, options: Options) -> runs.Watcher:
    """The display, and whom the flags name; a package that is missing is told before anything is written."""
    return runs.together(
        *([runs.writers.tensorboard(folder / "tensorboard")] if options.tensorboard else []),
        *([runs.writers.mlflow(options.mlflow)] if options.mlflow is not None else []),
        *([runs.writers.wandb(options.wandb, folder)] if options.wandb is not None else []),
        runs.display(console, quiet=options.quiet),
    )


def settle(options: Options, folder: Path) -> None:
    """Devices and processes, before the first computation."""
    group = group_of(options.coordinator, options.process, options.processes)
    alone = None if options.again or group else runs.recorded_devices(folder)
    if group is not None and group.process == 0 and not options.quiet:
        tell_error(f"Waiting for {group.processes - 1} other processes at {group.coordinator}.")
    prepare(jax.config, options.devices or alone, group)


def diverged(results: Any) -> list[str]:
    """The combinations that were run and in which a seed has diverged."""
    bad = (results["finite"] == 0).any(["seed", "task"]).stack(name=["net", "strategy", "scenario"])
    return ["/".join(labels) for labels in bad["name"].values[bad.values]]


def repeat(console: Console, asked: Repeat) -> int:
    """Run again what a folder says; 0 if the same came out, 1 if not."""
    config = runs.load_config(asked.source)
    if config.get("over"):
        raise ValueError(
            f"--from repeats a run, got {asked.source}, a cell of a sweep, whose weights are not kept. "
            "Give the sweep's command with another --runs, and compare the two sweep.nc."
        )
    for read in (runs.load_environment, runs.load_params):  # what will be compared, before hours of work
        read(asked.source)
    question = runs.load_results(asked.source).attrs.get("question", "")
    prepare(jax.config, asked.devices or runs.recorded_devices(asked.source))
    experiments = runs.load_experiments(asked.source)
    with tempfile.TemporaryDirectory() as temporary:
        into = asked.into or Path(temporary) / "repeated"
        if into.resolve() == asked.source.resolve():
            raise ValueError(f"--into must be another folder than {asked.source}, which is compared with it.")
        watcher = runs.display(console, quiet=asked.quiet)
        layout = cl.Layout(data=runs.load_environment(asked.source).get("data_devices") or 1)
        told = {"question": question, "watcher": watcher, "layout": layout}
        if runs.carry_out(into, config, experiments, **told).found:
            console.print(f"Compared with the run that is already in {into}.", soft_wrap=True)
        differing, around = runs.differences(asked.source, into), runs.surroundings(asked.source, into)
    console.print("Differs:" if differing else "Bit-identical: results and weights.")
    for line in differing:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if around:
        console.print("The surroundings differ in:")
    for line in around:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return 1 if differing else 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*donated.*")
    leave(main, sys.argv[1:])
