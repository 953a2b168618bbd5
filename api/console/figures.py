"""What a run measured, thinned to what a plot can show."""

from collections.abc import Iterator, Sequence
from typing import Any

from foundry.spec.resources import JobMetrics
from foundry.store.history import History

SERIES = ("loss", "held_out_loss", "tokens_per_s", "memory_bytes")
_PAGE = 5000
_MOST_POINTS = 600
"""More than any screen has pixels for across one plot."""


def figures_of(history: History, project_id: str, job_id: str) -> dict[str, Any]:
    """By stage: the steps and, for each series, a value or None at each; and `last_seq`, the event to go on from.

    A step that was repeated after a crash counts with its last value. Raises `NotFound`.
    """
    stages: dict[str, dict[int, JobMetrics]] = {}
    last_seq = 0
    for point in _all(history, project_id, job_id):
        last_seq = point.seq
        if point.stage is not None and point.step is not None and "loss" in point.values:
            stages.setdefault(point.stage, {})[point.step] = point
    return {"last_seq": last_seq, "stages": {name: _columns(points) for name, points in stages.items()}}


def _all(history: History, project_id: str, job_id: str) -> Iterator[JobMetrics]:
    after = 0
    while True:
        page = history.metrics(project_id, job_id, _PAGE, after)
        yield from page.data
        if page.next is None:
            return
        after = int(page.next)


def _columns(points: dict[int, JobMetrics]) -> dict[str, Any]:
    steps = _thinned(sorted(points))
    named = {name: [points[step].values.get(name) for step in steps] for name in SERIES}
    return {
        "steps": steps,
        "series": {name: values for name, values in named.items() if any(v is not None for v in values)},
    }


def _thinned(steps: Sequence[int]) -> list[int]:
    """Evenly spaced, the last among them."""
    stride = -(-len(steps) // _MOST_POINTS) or 1
    return [*steps[::-1][::stride]][::-1]
