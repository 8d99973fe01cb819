"""Runs that can be trusted: carried out, watched, taken up again, repeated; their folder, tables, figures and report.

In short:
    outcome = carry_out(Path("runs") / run_name(config), config, experiments, watcher=display(console))
    write_report(outcome.folder)
    load_results(outcome.folder);  load_params(outcome.folder);  load_log(outcome.folder)
"""

from bptoolkit.runs import writers
from bptoolkit.runs.chosen import choice_of, load_choice, with_choice
from bptoolkit.runs.compare import differences, surroundings
from bptoolkit.runs.comparison import write_comparison
from bptoolkit.runs.contrasts import contrasts
from bptoolkit.runs.display import display
from bptoolkit.runs.figures import save_figures
from bptoolkit.runs.interrupt import Interrupted
from bptoolkit.runs.log import load_log
from bptoolkit.runs.rebuild import load_config, load_experiments
from bptoolkit.runs.record import (
    Run,
    RunError,
    finish,
    load_results,
    open_run,
    recorded_devices,
    run_name,
    save_results,
)
from bptoolkit.runs.recorded import load_environment
from bptoolkit.runs.report import write_report
from bptoolkit.runs.session import Outcome, carry_out
from bptoolkit.runs.summary import interval, load_summary, save_summary, summarise
from bptoolkit.runs.sweep import load_sweep, sweep
from bptoolkit.runs.tables import markdown_table, terminal_table
from bptoolkit.runs.watch import Watcher, guarded, together, unwatched
from bptoolkit.runs.weights import load_params

__all__ = [
    "Interrupted",
    "Outcome",
    "Run",
    "RunError",
    "Watcher",
    "carry_out",
    "choice_of",
    "contrasts",
    "differences",
    "display",
    "finish",
    "guarded",
    "interval",
    "load_choice",
    "load_config",
    "load_environment",
    "load_experiments",
    "load_log",
    "load_params",
    "load_results",
    "load_summary",
    "load_sweep",
    "markdown_table",
    "open_run",
    "recorded_devices",
    "run_name",
    "save_figures",
    "save_results",
    "save_summary",
    "summarise",
    "surroundings",
    "sweep",
    "terminal_table",
    "together",
    "unwatched",
    "with_choice",
    "write_comparison",
    "write_report",
    "writers",
]
