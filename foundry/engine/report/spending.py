"""What a job took, from its journal."""

from collections.abc import Sequence

from foundry.engine.journal import ATTEMPT, ENDED, Entry
from foundry.spec.lifecycle import EventType
from foundry.spec.report import Cost, StageRun, TargetReport


def seconds_of(entries: Sequence[Entry]) -> dict[str, float]:
    """Wall clock of each stage: from its start to its end, or to the last that was heard of the attempt."""
    spent: dict[str, float] = {}
    current: tuple[str, Entry] | None = None
    last: Entry | None = None
    for entry in entries:
        closes = entry.type in (EventType.STAGE_STARTED, EventType.STAGE_COMPLETED, ATTEMPT)
        if current and closes and last:
            end = entry if entry.type != ATTEMPT else last  # between two attempts nobody was at work
            spent[current[0]] = spent.get(current[0], 0.0) + (end.at - current[1].at).total_seconds()
            current = None
        if entry.type == EventType.STAGE_STARTED:
            current = str(entry.data.get("stage")), entry
        last = entry
    if current and last:
        spent[current[0]] = spent.get(current[0], 0.0) + (last.at - current[1].at).total_seconds()
    return spent


def cost_of(entries: Sequence[Entry], stages: Sequence[StageRun], targets: Sequence[TargetReport]) -> Cost:
    """Time, tokens and energy of all attempts."""
    attempts = [entry for entry in entries if entry.type == ATTEMPT]
    newest = attempts[-1].data if attempts else {}
    trained = {curve.stage: curve.tokens for target in targets for curve in target.curves if curve.stage != "lora"}
    adapted = sum(curve.tokens for target in targets for curve in target.curves if curve.stage == "lora")
    scored = sum(metrics.tokens or 0 for target in targets for metrics in target.metrics)
    return Cost(
        seconds=sum(stage.seconds for stage in stages),
        attempts=len(attempts),
        hardware=newest.get("hardware"),
        accelerated=newest.get("device") not in (None, "cpu"),
        trained_tokens=sum(trained.values()) + adapted,
        scored_tokens=scored,
        energy_joules=_joules(entries),
    )


def _joules(entries: Sequence[Entry]) -> float | None:
    """Sum over attempts that have both readings and in which the counter did not wrap around."""
    total, known = 0.0, False
    start: float | None = None
    for entry in entries:
        reading = entry.data.get("processor_joules")
        if entry.type == ATTEMPT:
            start = reading
        elif entry.type == ENDED and start is not None and reading is not None and reading >= start:
            total, known, start = total + reading - start, True, None
    return total if known else None
