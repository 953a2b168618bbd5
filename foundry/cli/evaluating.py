"""`foundry evaluate`: one model in a suite of benchmarks, beside what others have published."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from foundry.cli.render import out, say, table
from foundry.cli.running import interruptible, pick_device
from foundry.errors import MissingExtra, UserError
from foundry.spec.evaluation import PLAIN
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.suite import SuiteResult, find_suite, published, with_tasks
from foundry.spec.variant import Metrics

if TYPE_CHECKING:
    from foundry.engine.context import RunContext

RESULT = "result.json"
_INTERRUPTED = 130


def evaluate_here(
    model: str, suite: str, tasks: tuple[str, ...], task_folder: Path | None, data_dir: Path | None, limit: int | None,
    allow_code: bool, output: Path | None, device: str | None, form: str | None = None,
) -> SuiteResult:  # fmt: skip
    """Score a model; raises what the engine raises, and `MissingExtra` without the harness."""
    _require("evaluate", "torch", "lm_eval")
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir}: there is no such folder", pointer="/data_dir")
    form = None if form == PLAIN else form
    if form is not None:
        _require("export", "xllamacpp")
    known = with_tasks(find_suite(suite), tasks)
    _quieten()
    from foundry.engine.evaluate.suites.model import evaluate_model
    from foundry.engine.evaluate.suites.run import Conditions
    from foundry.engine.evaluate.suites.tasks import custom_suite, named_tasks
    from foundry.engine.workspace import write_json

    manager = None
    if task_folder is not None:
        chosen, manager = custom_suite(task_folder, tasks)
    elif known is not None:
        chosen = known
    else:
        chosen, manager = named_tasks(tasks)
    called = f"{Path(model).name or 'model'}-{chosen.name}" + (f"-{form.replace(':', '-')}" if form else "")
    folder = output or Path("evaluations") / called
    conditions = Conditions(data_dir=data_dir, limit=limit, allow_code=allow_code)
    with _running(device, f"Finished tasks are in {folder}; the same command goes on behind them.") as context:
        result = evaluate_model(model, chosen, folder, conditions, context, manager=manager, form=form)
    write_json(folder / RESULT, result.model_dump(mode="json"))
    say(f"Written to {folder / RESULT}", style="dim")
    return result


def measure_here(model: str, data: Path, teacher: str | None, tokens: int, device: str | None) -> list[Metrics]:
    """Measure a model on the held-out side of a data file; raises what the engine raises."""
    _require("engine", "torch")
    _quieten()
    from foundry.engine.evaluate.domain import evaluate_on

    with _running(device, "Nothing is kept.") as context:
        return evaluate_on(model, data, context, teacher=teacher, tokens=tokens)


def _require(extra: str, *modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtra(module, extra)


@contextmanager
def _running(device: str | None, when_stopped: str) -> Iterator["RunContext"]:
    """A context that ends the program with 130 when it is interrupted."""
    from foundry.engine.context import RunContext, Stopped, choose_dtype  # late: torch takes seconds to import

    picked = pick_device(device)
    with interruptible() as should_stop:
        try:
            yield RunContext(emit=_show, should_stop=should_stop, device=picked, dtype=choose_dtype(picked), seed=0)
        except Stopped:
            say(f"Stopped. {when_stopped}", style="yellow")
            raise typer.Exit(_INTERRUPTED) from None


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
    if (others := published(result.suite)) is not None:
        say(f"Published figures: {others.source}", style="dim")
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
    rows.title = table_of.title
    for row in table_of.rows:
        rows.add_row(row.model, *(f"{row.scores[t.task]:.2f}" if t.task in row.scores else "" for t in result.tasks))
    rows.add_section()
    mine = [f"{100 * t.value:.2f}" if t.value is not None else t.status for t in result.tasks]
    rows.add_row(Text(result.model, style="bold"), *mine)
    if result.limit is not None:
        rows.add_row(f"(at most {result.limit} examples each)", *("" for _ in titles))
    return rows


def domain_table(rows_of: Sequence[Metrics]) -> Table:
    """Figures on held-out text, the interval under each."""
    names = ("loss", "over the teacher", "perplexity", "bits/byte", "KL", "top 1", "top 5", "exact", "F1")
    rows = table("model", right=names)
    for row in rows_of:
        rows.add_row(
            row.model, *(_with_interval(row, name, kind) for name, kind in _COLUMNS), end_section=True
        )  # fmt: skip
    rows.caption = f"{rows_of[-1].tokens:,} tokens of {rows_of[-1].documents or 0:,} documents; 95 % intervals below"
    return rows


_COLUMNS = (
    ("held_out_loss", ".3f"), ("loss_over_teacher", "+.3f"), ("perplexity", ".2f"), ("bits_per_byte", ".3f"),
    ("kl_to_teacher", ".3f"), ("top1_agreement_ratio", ".1%"), ("top5_agreement_ratio", ".1%"),
    ("exact_match_ratio", ".1%"), ("f1_ratio", ".1%"),
)  # fmt: skip


def _with_interval(row: Metrics, name: str, kind: str) -> str:
    value = getattr(row, name)
    if value is None:
        return ""
    between = row.intervals.get(name)
    return f"{value:{kind}}" + (f"\n{between[0]:{kind}} to {between[1]:{kind}}" if between else "")
