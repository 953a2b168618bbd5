"""What the run says, on its way to the database: parsed, thinned out where it repeats itself, kept until delivered."""

import threading
import time
from collections.abc import Callable

import structlog
from pydantic import ValidationError

from foundry.spec.lifecycle import EventType, RunEvent
from foundry.store.events import RUN_EVENTS

_log = structlog.get_logger()
_PROGRESS_S = 0.5
_BATCH = 200
_MOST_WAITING = 10_000
_MESSAGE_CHARACTERS = 10_000
_STAGE_BOUNDS = frozenset({EventType.STAGE_STARTED, EventType.STAGE_COMPLETED, EventType.STAGE_SKIPPED})
_MILESTONES = _STAGE_BOUNDS | {EventType.CHECKPOINT}
"""Never dropped, however long the database is away."""


class Relay:
    """One thread hears, another takes. Progress passes once in half a second and stage, the last of a stage always."""

    def __init__(
        self, now: Callable[[], float] = time.monotonic, *, also: Callable[[RunEvent], None] = lambda _: None
    ) -> None:
        """`also` is told of every event at once, before any is thinned out."""
        self._now = now
        self._also = also
        self._lock = threading.Lock()
        self._waiting: list[RunEvent] = []
        self._held: dict[str, RunEvent] = {}
        self._passed_at: dict[str, float] = {}
        self._dropped = 0
        self.last_error: RunEvent | None = None
        """The run's last words: the reason when it ends with an error."""

    def hear(self, line: bytes) -> None:
        """One line of the run's standard output; one that is no event of a run goes to the log."""
        try:
            event = RunEvent.model_validate_json(line)
        except ValidationError:
            event = None
        if event is None or event.type not in RUN_EVENTS:
            _log.warning("the run said something that is no event", line=line[:200].decode("utf-8", "replace"))
            return
        if len(event.message) > _MESSAGE_CHARACTERS:
            event = event.model_copy(update={"message": event.message[:_MESSAGE_CHARACTERS] + "…"})
        self._also(event)
        with self._lock:
            if event.type is EventType.PROGRESS:
                self._progress(event)
                return
            if event.type in _STAGE_BOUNDS:
                self._release(due_only=False)
            if event.type is EventType.LOG and event.level == "error":
                self.last_error = event
            self._add(event)

    def take(self) -> list[RunEvent]:
        """The next events to deliver, in order; empty when there is nothing to say now."""
        with self._lock:
            self._release(due_only=True)
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            if self._dropped and not self._waiting:
                message = f"{self._dropped} events were dropped while the database was away"
                batch.append(RunEvent(type=EventType.WARNING, message=message, level="warning"))
                self._dropped = 0
            return batch

    def give_back(self, events: list[RunEvent]) -> None:
        """They could not be delivered: they come first the next time."""
        with self._lock:
            self._waiting[:0] = events

    def end(self) -> None:
        """The run will say no more: let pass what was held back."""
        with self._lock:
            self._release(due_only=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken, now or later."""
        with self._lock:
            return not (self._waiting or self._held or self._dropped)

    def _progress(self, event: RunEvent) -> None:
        stage = str(event.data.get("stage"))
        is_last = event.data.get("step") is not None and event.data["step"] == event.data.get("steps")
        self._held[stage] = event
        if is_last or self._is_due(stage):
            self._pass(stage)

    def _is_due(self, stage: str) -> bool:
        return self._now() - self._passed_at.get(stage, float("-inf")) >= _PROGRESS_S

    def _release(self, *, due_only: bool) -> None:
        for stage in [stage for stage in self._held if not due_only or self._is_due(stage)]:
            self._pass(stage)

    def _pass(self, stage: str) -> None:
        self._add(self._held.pop(stage))
        self._passed_at[stage] = self._now()

    def _add(self, event: RunEvent) -> None:
        if len(self._waiting) >= _MOST_WAITING and event.type not in _MILESTONES:
            self._dropped += 1
        else:
            self._waiting.append(event)
