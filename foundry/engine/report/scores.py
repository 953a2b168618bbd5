"""The table of benchmarks: published models, the teacher, and every target with its difference to the teacher."""

import math
from typing import NamedTuple

from foundry.spec.report import JobReport
from foundry.spec.suite import TaskResult, published
from foundry.spec.words import signed


class Cell(NamedTuple):
    """A score in percent and what stands under it."""

    score: str
    under: str = ""


class Row(NamedTuple):
    """One model."""

    model: str
    kind: str
    """published, teacher or ours."""
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """All rows of one suite."""

    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    source: str
    """Where published figures come from; empty when there are none."""
    notes: tuple[str, ...]


def benchmark_table(report: JobReport) -> Table | None:
    """None for a job without benchmarks."""
    if not report.benchmarks:
        return None
    teacher, *others = report.benchmarks
    table = published(teacher.suite)
    rows = [
        Row(row.model, "published", tuple(_published(row.scores.get(task.task)) for task in teacher.tasks))
        for row in (table.rows if table else ())
    ]
    rows.append(Row(teacher.model, "teacher", tuple(_cell(task, None) for task in teacher.tasks)))
    for result in others:
        pairs = zip(result.tasks, teacher.tasks, strict=True)
        rows.append(Row(result.model, "ours", tuple(_cell(task, base) for task, base in pairs)))
    notes = dict.fromkeys(f"{t.title}: {t.note}" for result in report.benchmarks for t in result.tasks if t.note)
    titles = tuple(f"{t.title}, {t.shots or 0}-shot" for t in teacher.tasks)
    return Table(titles, tuple(rows), table.source if table else "", tuple(notes))


def _published(score: float | None) -> Cell:
    return Cell("" if score is None else f"{score:.2f}")


def _cell(task: TaskResult, teacher: TaskResult | None) -> Cell:
    if task.value is None:
        return Cell(task.status)
    score = f"{100 * task.value:.2f}"
    if teacher is None or teacher.value is None:
        return Cell(score, f"± {100 * task.standard_error:.2f}" if task.standard_error is not None else "")
    difference = signed(100 * (task.value - teacher.value), 2)
    if task.standard_error is None or teacher.standard_error is None:
        return Cell(score, difference)
    # As of two separate samples: that both models answered the same questions mostly makes it smaller.
    error = 100 * math.hypot(task.standard_error, teacher.standard_error)
    return Cell(score, f"{difference} ± {error:.2f}")
