"""`foundry evaluate`: one model in a suite of benchmarks, beside what others have published."""

import logging
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from foundry.cli.render import out, say, table
from foundry.cli.running import interruptible, pick_device
from foundry.errors import MissingExtra, UserError
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.suite import Suite, SuiteResult, find_suite, only, published

RESULT = "result.json"
_INTERRUPTED = 130


def evaluate_here(
    model: str, suite: str, tasks: tuple[str, ...], task_folder: Path | None, data_dir: Path | None, limit: int | None,
    allow_code: bool, output: Path | None, device: str | None,
) -> SuiteResult:  # fmt: skip
    """Score a model; raises what the engine raises, and `MissingExtra` without the harness."""
    for module, extra in (("torch", "engine"), ("lm_eval", "evaluate")):
        if find_spec(module) is None:
            raise MissingExtra(module, extra)
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir}: there is no such folder", pointer="/data_dir")
    known = find_suite(suite)
    chosen = only(known, tasks) if tasks and task_folder is None and _all_in(known, tasks) else known

    from foundry.engine.context import RunContext, Stopped, choose_dtype  # late: torch takes seconds to import

    _quieten()
    from foundry.engine.evaluate.suites.model import evaluate_model
    from foundry.engine.evaluate.suites.run import Conditions
    from foundry.engine.evaluate.suites.tasks import custom_suite, named_tasks
    from foundry.engine.workspace import write_json

    manager = None
    if task_folder is not None:
        chosen, manager = custom_suite(task_folder, tasks)
    elif tasks and not _all_in(known, tasks):
        chosen, manager = named_tasks(tasks)
    folder = output or Path("evaluations") / f"{Path(model).name or 'model'}-{chosen.name}"
    conditions = Conditions(data_dir=data_dir, limit=limit, allow_code=allow_code)
    picked = pick_device(device)
    with interruptible() as should_stop:
        context = RunContext(emit=_show, should_stop=should_stop, device=picked, dtype=choose_dtype(picked), seed=0)
        try:
            result = evaluate_model(model, chosen, folder, conditions, context, manager=manager)
        except Stopped:
            say(f"Stopped. Finished tasks are in {folder}; the same command goes on behind them.", style="yellow")
            raise typer.Exit(_INTERRUPTED) from None
    write_json(folder / RESULT, result.model_dump(mode="json"))
    say(f"Written to {folder / RESULT}", style="dim")
    return result


def _all_in(suite: Suite, tasks: tuple[str, ...]) -> bool:
    return set(tasks) <= {task.task for task in suite.tasks}


def _quieten() -> None:
    """The harness and what it loads tell much that is of no use to whoever waits for a table.

    Bars stay where somebody can see them move.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("lm_eval", "datasets", "evaluate", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lm_eval|datasets|evaluate|multiprocess)(\.|$)")


def _show(event: RunEvent) -> None:
    if event.type != EventType.PROGRESS:
        say(event.message)


def show(result: SuiteResult) -> None:
    """Every task with its error, then the same row beside the published ones."""
    out().print(results_table(result))
    if (beside := published_table(result)) is not None:
        out().print(beside)
    for task in result.tasks:
        if task.note:
            say(f"{task.task}: {task.note}", style="yellow" if task.status != "done" else "dim")


def results_table(result: SuiteResult) -> Table:
    """What was measured, task by task."""
    rows = table("task", "metric", "version", right=("shots", "examples", "score, %", "± standard error"))
    rows.title = f"{result.model}, {result.harness}"
    for task in result.tasks:
        if task.value is None:
            rows.add_row(task.title, "", "", str(task.shots or 0), "", Text(task.status, style="yellow"), "")
            continue
        error = f"{100 * task.standard_error:.2f}" if task.standard_error is not None else ""
        of = f"{task.examples:,} of {task.examples_of:,}" if task.examples != task.examples_of else f"{task.examples:,}"
        rows.add_row(task.title, task.metric, task.version, str(task.shots), of, f"{100 * task.value:.2f}", error)
    return rows


def published_table(result: SuiteResult) -> Table | None:
    """The published table of the suite with this model's row under it; None when there is none."""
    table_of = published(result.suite)
    if table_of is None:
        return None
    titles = [task.title for task in result.tasks]
    rows = table("model", right=titles, narrow=True)
    rows.title, rows.caption = table_of.title, table_of.source
    for row in table_of.rows:
        rows.add_row(row.model, *(f"{row.scores[t.task]:.2f}" if t.task in row.scores else "" for t in result.tasks))
    rows.add_section()
    mine = [f"{100 * t.value:.2f}" if t.value is not None else t.status for t in result.tasks]
    rows.add_row(Text(result.model, style="bold"), *mine)
    if result.limit is not None:
        rows.add_row(f"(at most {result.limit} examples each)", *("" for _ in titles))
    return rows
