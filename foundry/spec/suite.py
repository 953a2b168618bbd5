"""Suites of benchmarks as tables, what a model scored in one, and what others have published."""

import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import Field

from foundry.errors import UnknownSuite, UnknownTask
from foundry.spec.record import Count, Record, parse


class SuiteTask(Record):
    """One benchmark with the settings of a suite. Names of tasks and metrics are those of lm-evaluation-harness."""

    task: str
    title: str = ""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question; None leaves it to the task."""
    metric: str | None = None
    """The figure that stands in the table; None takes the task's first."""
    filter: str = "none"
    file: str | None = None
    """The task's YAML, below the harness's tasks or (foundry:NAME) below our own; a pattern names a group of subjects.
    None looks the name up in the harness's index."""
    dataset: str | None = None
    """On the hub."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the examples, from the first on."""
    runs_code: bool = False
    """Whether what the model writes is executed."""


class Suite(Record):
    """Some benchmarks that are run together."""

    name: str
    description: str = ""
    limit: Count | None = None
    """Examples of each task at most."""
    tasks: tuple[SuiteTask, ...]


TaskStatus = Literal["done", "missing", "refused", "failed"]


class TaskResult(Record):
    """What a model scored in one task, or why it did not."""

    task: str
    """Its name in lm-evaluation-harness."""
    title: str
    """For people."""
    status: TaskStatus
    """done has a value. missing: its data is not there. refused: it runs code, and that is not allowed or not safe
    here. failed: `note` says why."""
    metric: str = ""
    """The name of the figure, such as acc_norm; empty without a value."""
    value: float | None = None
    """A share of 1."""
    standard_error: float | None = None
    """Of `value`, on the same scale; null where the harness knows none."""
    shots: int | None = None
    """Solved examples before each question; null where the task decides and did not run."""
    examples: int | None = None
    """How many were scored."""
    examples_of: int | None = None
    """How many the task has."""
    version: str = ""
    """Of the task, as the harness counts it."""
    seconds: float | None = None
    """Wall clock of this task; null where it did not run to its end."""
    note: str = ""
    """What a reader must know: where few-shot examples came from, which file is missing, why it was refused."""


class SuiteResult(Record):
    """What one model scored in a suite."""

    suite: str
    """Its name."""
    model: str
    """Who was scored, for people."""
    limit: int | None
    """Examples of each task at most; null took all, or the share that a task of the suite names."""
    seed: int
    """Of the choice of solved examples."""
    harness: str
    """lm-evaluation-harness with its version."""
    hardware: str
    """The accelerator, or the processor with the number of threads."""
    finished_at: datetime
    """When the last of these tasks was added, UTC."""
    tasks: tuple[TaskResult, ...]
    """In the order of the suite; those that are finished so far."""


class PublishedRow(Record):
    """A model that somebody else measured."""

    model: str
    role: Literal["teacher", "student", "peer"]
    training_tokens: int | None = None
    scores: dict[str, float]
    """By task, in percent."""


class Published(Record):
    """A published table of one suite."""

    title: str
    suite: str
    source: str
    rows: tuple[PublishedRow, ...]


@cache
def suites() -> Mapping[str, Suite]:
    """Every table under data/suites by name."""
    found = (parse(Suite, document, prefix=f"/{name}") for name, document in _tables("suites"))
    return {suite.name: suite for suite in found}


@cache
def published(suite: str) -> Published | None:
    """The published table that goes with a suite."""
    tables = (parse(Published, document, prefix=f"/{name}") for name, document in _tables("published"))
    return next((table for table in tables if table.suite == suite), None)


def find_suite(name: str) -> Suite:
    """A suite by name; raise `UnknownSuite` with the nearest."""
    if (found := suites().get(name)) is None:
        raise UnknownSuite(f"unknown suite {name!r}; {nearest(name, list(suites()))}", pointer="/suite")
    return found


def with_tasks(suite: Suite, tasks: Sequence[str]) -> Suite | None:
    """The named tasks with the settings of this suite, else of another that has them all; None when none has."""
    for one in (suite, *suites().values()):
        if set(tasks) <= {task.task for task in one.tasks}:
            return only(one, tasks) if tasks else one
    return None


def only(suite: Suite, tasks: Sequence[str]) -> Suite:
    """The suite with some of its tasks alone; raise `UnknownTask` with the nearest."""
    names = [task.task for task in suite.tasks]
    for wanted in tasks:
        if wanted not in names:
            raise UnknownTask(
                f"suite {suite.name!r} has no task {wanted!r}; {nearest(wanted, names)}", pointer="/tasks"
            )
    return suite.model_copy(update={"tasks": tuple(task for task in suite.tasks if task.task in tasks)})


def nearest(name: str, names: Sequence[str]) -> str:
    """What may have been meant."""
    close = get_close_matches(name, names, n=4, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names[:12])}"


def _tables(folder: str) -> list[tuple[str, Any]]:
    paths = sorted((files("foundry") / "data" / folder).iterdir(), key=lambda path: path.name)
    tables = [path for path in paths if path.name.endswith(".toml")]
    return [(path.name, tomllib.loads(path.read_text(encoding="utf-8"))) for path in tables]
