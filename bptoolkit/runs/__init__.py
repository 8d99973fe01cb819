"""What is kept of a run: its folder, its summary with intervals, tables, figures, and one report to read.

run = open_run(Path("runs") / run_name(config), config)
save_results(run.folder, results);  save_summary(run.folder, results);  save_figures(results, run.folder)
finish(run.folder, "finished");     write_report(run.folder)
"""

from bptoolkit.runs.display import display
from bptoolkit.runs.figures import save_figures
from bptoolkit.runs.record import Run, RunError, finish, load_results, open_run, run_name, save_results
from bptoolkit.runs.report import write_report
from bptoolkit.runs.summary import interval, load_summary, save_summary, summarise
from bptoolkit.runs.tables import markdown_table, terminal_table
from bptoolkit.runs.watch import Watcher, guarded, together, unwatched

__all__ = [
    "Run",
    "RunError",
    "Watcher",
    "display",
    "finish",
    "guarded",
    "interval",
    "load_results",
    "load_summary",
    "markdown_table",
    "open_run",
    "run_name",
    "save_figures",
    "save_results",
    "save_summary",
    "summarise",
    "terminal_table",
    "together",
    "unwatched",
    "write_report",
]
