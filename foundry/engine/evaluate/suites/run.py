"""Runs a suite on one model, task by task. Every finished task is on disk; started again, the run goes on behind it."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import pooled_sample_stderr
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from foundry.engine.context import RunContext, Stopped
from foundry.engine.evaluate.suites.confine import can_confine
from foundry.engine.evaluate.suites.tasks import DataMissing, Prepared, prepare
from foundry.engine.hardware import hardware_name
from foundry.engine.workspace import read_json, write_json
from foundry.errors import FoundryError, InvalidData
from foundry.spec.lifecycle import EventType, Progress
from foundry.spec.record import parse
from foundry.spec.suite import Suite, SuiteResult, SuiteTask, TaskResult

_RESAMPLES = 1000
"""Of the harness's bootstrap, for the figures that are no means."""
_FORBIDDEN = (
    "it runs code that the model writes, and the operator has not allowed that (--allow-code; FOUNDRY_ALLOW_CODE=1 "
    "where workers run)"
)
_UNCONFINED = "it runs code that the model writes, and this system gives no process a network of its own to run it in"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is not of the suite: whose data, how much of it, and what is allowed."""

    data_dir: Path | None = None
    """Local copies of the benchmarks; None fetches them from the hub."""
    limit: int | None = None
    """Examples of each task, in place of the suite's own limit."""
    allow_code: bool = False
    seed: int = 1234


def run_suite(
    suite: Suite, lm: LM, name: str, digest: str, folder: Path, conditions: Conditions, context: RunContext, *,
    manager: TaskManager | None = None, hardware: str | None = None,
    take: Callable[[SuiteResult], None] = lambda _: None,
) -> SuiteResult:  # fmt: skip
    """Score `lm` in every task and write each result into `folder`; `manager` knows tasks that no table of ours names.

    `take` is given all that is finished, after every task that was not finished before.

    A task whose data is missing, or that is refused or fails, says so in its result and the others run all the same.
    `digest` is of the model: results of another one, or under other conditions, are not taken for this one's. Raises
    `Stopped` between batches.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[TaskResult] = []

    def so_far() -> SuiteResult:
        return SuiteResult(
            suite=suite.name, model=name, limit=conditions.limit or suite.limit, seed=conditions.seed,
            harness=f"lm-eval {version('lm_eval')}", hardware=hardware or hardware_name(context.device),
            finished_at=datetime.now(UTC), tasks=tuple(results),
        )  # fmt: skip

    for step, task in enumerate(suite.tasks, start=1):
        if context.should_stop():
            raise Stopped
        runner = _Runner(lm, suite, conditions, manager)
        path = folder / f"{task.task}.json"
        key = _key(task, suite, conditions, digest)
        if (kept := _finished(path, key)) is not None:
            results.append(kept)
        else:
            results.append(result := runner.run(task))
            write_json(path, {"key": key, "result": result.model_dump(mode="json")})
            context.report(EventType.LOG, _said(name, result), stage="evaluate", task=task.task)
            take(so_far())
        context.progress(Progress(stage="evaluate", step=step, steps=len(suite.tasks)))
    return so_far()


def _said(name: str, result: TaskResult) -> str:
    if result.value is None:
        return f"{name}: {result.task} is {result.status}: {result.note}"
    error = f" ± {100 * result.standard_error:.2f}" if result.standard_error is not None else ""
    return f"{name}: {result.task} {100 * result.value:.2f}{error} ({result.examples} examples)"


def _key(task: SuiteTask, suite: Suite, conditions: Conditions, digest: str) -> str:
    """Of all that a result depends on."""
    parts = [task.model_dump(), conditions.limit or suite.limit, str(conditions.data_dir), conditions.seed, digest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(path: Path, key: str) -> TaskResult | None:
    """A result that stands; what was missing, refused or failed is tried again."""
    try:
        document = read_json(path)
        result = parse(TaskResult, document["result"])
    except (OSError, ValueError, KeyError, TypeError, FoundryError):
        return None
    return result if document.get("key") == key and result.status == "done" else None


@dataclass(frozen=True)
class _Runner:
    lm: LM
    suite: Suite
    conditions: Conditions
    manager: TaskManager | None

    def run(self, task: SuiteTask) -> TaskResult:
        begun = time.monotonic()
        blank = TaskResult(task=task.task, title=task.title or task.task, status="refused", shots=task.shots)
        if task.runs_code and not self.conditions.allow_code:
            return blank.model_copy(update={"note": _FORBIDDEN})
        if task.runs_code and not can_confine():
            return blank.model_copy(update={"note": _UNCONFINED})
        try:
            prepared = self._prepared(task)
            found = self._evaluated(task, prepared)
        except DataMissing as missing:
            return blank.model_copy(update={"status": "missing", "note": str(missing)})
        except Stopped:
            raise
        except InvalidData as error:
            return blank.model_copy(update={"status": "failed", "note": error.message})
        except Exception as error:
            kind = "missing" if _is_unreachable(error) else "failed"
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
            if kind == "missing":
                reason = f"its data cannot be fetched; give local copies with --data-dir ({reason})"
            return blank.model_copy(update={"status": kind, "note": reason})
        update = {"status": "done", "seconds": time.monotonic() - begun, "note": prepared.note}
        return blank.model_copy(update=update | found)

    def _prepared(self, task: SuiteTask) -> Prepared:
        if task.file is None:
            return Prepared(configs=({"task": task.task},))
        return prepare(task, self.conditions.data_dir)

    def _evaluated(self, task: SuiteTask, prepared: Prepared) -> dict[str, Any]:
        limit: float | None = self.conditions.limit or self.suite.limit
        if limit is None and task.share < 1:
            limit = task.share
        wanted: list[Any] = [config if task.file else config["task"] for config in prepared.configs]
        loaded = (self.manager or TaskManager(include_defaults=False)).load(wanted)
        for one in loaded["tasks"].values():
            if one.get_config("num_fewshot") is None:
                one.set_config(key="num_fewshot", value=0)
            one.set_fewshot_seed(seed=self.conditions.seed)
        # Not simple_evaluate: it asks the system about itself for seconds, task by task.
        document = evaluate(
            lm=self.lm, task_dict=loaded, limit=limit, log_samples=False, bootstrap_iters=_RESAMPLES,
            confirm_run_unsafe_code=False,
        )  # fmt: skip
        return _summary(task, document)


def _summary(task: SuiteTask, document: dict[str, Any]) -> dict[str, Any]:
    """Value, error and sizes; of several subjects the mean over all their examples, as the harness does for groups."""
    names = [name for name in document["results"] if name in document["n-samples"]]
    rows = [document["results"][name] for name in names]
    sizes = [int(document["n-samples"][name]["effective"]) for name in names]
    of = [int(document["n-samples"][name]["original"]) for name in names]
    metric, key = _metric(task, rows[0])
    values = [float(row[key]) for row in rows]
    errors = [row.get(key.replace(",", "_stderr,", 1)) for row in rows]
    known = [float(error) for error in errors if isinstance(error, int | float)]
    total = sum(sizes)
    error = None
    if len(known) == len(rows):
        error = known[0] if len(rows) == 1 else float(pooled_sample_stderr(known, sizes))
    versions = dict.fromkeys(str(document["versions"].get(name, "")) for name in names)
    shots = dict.fromkeys(document["n-shot"].get(name) for name in names)
    return {
        "metric": metric, "value": sum(v * n for v, n in zip(values, sizes, strict=True)) / total,
        "standard_error": error, "examples": total, "examples_of": sum(of), "version": ", ".join(versions),
        "shots": next(iter(shots)),
    }  # fmt: skip


def _metric(task: SuiteTask, row: dict[str, Any]) -> tuple[str, str]:
    """The name of the figure and its key, `METRIC,FILTER`."""
    keys = [key for key in row if "," in key and "_stderr," not in key]
    wanted = f"{task.metric},{task.filter}"
    key = wanted if wanted in keys else next((k for k in keys if k.split(",")[0] == task.metric), keys[0])
    return key.split(",")[0], key


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub did not give the data: no network, no such dataset, or offline by setting."""
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    return bool(
        names & {"ConnectionError", "DatasetNotFoundError", "DataFilesNotFoundError", "OfflineModeIsEnabled",
                 "HfHubHTTPError", "LocalEntryNotFoundError", "TransportError", "HTTPError"}
    )  # fmt: skip


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
