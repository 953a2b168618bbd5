"""Work followed to its end: jobs and evaluations tell of themselves in the same events."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Generic, TypeVar

import httpx2

from foundry.client import resource
from foundry.client.exchange import backoff_s, below
from foundry.client.flow import Close, Emit, Flow, Items, NextLine, Sleep, feed
from foundry.client.progress import RunProgress
from foundry.client.transport import AsyncTransport, Transport
from foundry.errors import JobFailed, RequestFailed, ServiceError, ServiceUnreachable, WaitExpired
from foundry.spec.evaluation import Evaluation
from foundry.spec.lifecycle import LAST_EVENTS, EventType, JobEvent, Status
from foundry.spec.resources import Job, Page

_POLL_S = 25.0
"""How long the service holds a request for events open before it answers that there are none."""
_STREAM_SILENCE_S = 45.0
"""The service says something at least every 15 seconds."""
PATIENCE_S = 300.0
"""How long a service that has answered before may be away."""

Watcher = Callable[[JobEvent], None]
W = TypeVar("W", Job, Evaluation)


class Following(Generic[W]):
    """The flows of one kind of work: `path` is where it stands, `noun` what it is called."""

    def __init__(self, exchange: Transport | AsyncTransport, kind: type[W], path: str, noun: str) -> None:
        self._exchange, self._path, self._noun = exchange, path, noun
        self._kind: type[W] = kind

    def events(
        self, work_id: str, after: int, timeout: float | None, patience_s: float = PATIENCE_S
    ) -> Items[JobEvent]:
        """Every event after `after`, by long polling, until the last one; raise `WaitExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        answered_at: float | None = None
        seen, failures = after, 0
        while True:
            try:
                page = yield from self._poll(work_id, seen, deadline)
                ended = False
                if not page:
                    work = yield from resource.get(self._exchange, self._kind, self._path, work_id)
                    ended = work.is_terminal
                if ended:  # the last events may have come between the two answers
                    page = yield from self._poll(work_id, seen, deadline=0.0)
            except (ServiceUnreachable, RequestFailed) as error:
                if not _may_pass(error) or answered_at is None or time.monotonic() - answered_at > patience_s:
                    raise
                yield Sleep(backoff_s(failures))
                failures += 1
            else:
                answered_at, failures = time.monotonic(), 0
                for event in page:
                    seen = event.seq
                    yield Emit(event)
                    ended = ended or event.type in LAST_EVENTS
                if ended:
                    return
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitExpired(
                    f"{self._noun} {work_id} had not ended after {timeout:g} s; it goes on: `foundry watch {work_id}`"
                )

    def _poll(self, work_id: str, after: int, deadline: float | None) -> Flow[tuple[JobEvent, ...]]:
        wait_s = _POLL_S if deadline is None else max(0.0, min(_POLL_S, deadline - time.monotonic()))
        response = yield from self._exchange.call(
            "GET", below(self._path, work_id, "events"),
            params={"after": after, "wait": math.ceil(wait_s)}, timeout=wait_s + 30,
        )  # fmt: skip
        return self._exchange.read(Page[JobEvent], response).data

    def stream(self, work_id: str, after: int) -> Items[JobEvent]:
        """The same over one open connection, opened again where it was cut."""
        seen = after
        while True:
            response = yield from self._exchange.call(
                "GET", below(self._path, work_id, "events"), params={"after": seen},
                headers={"Accept": "text/event-stream"}, timeout=_STREAM_SILENCE_S, stream=True,
            )  # fmt: skip
            try:
                if response.status_code == 204:  # all events are seen
                    return
                lines = self._exchange.lines(response)
                while (line := (yield NextLine(lines))) is not None:
                    if line.startswith("data:"):
                        event = _event(line)
                        seen = event.seq
                        yield Emit(event)
                        if event.type in LAST_EVENTS:
                            return
            except httpx2.RequestError:
                yield Sleep(backoff_s(0))
            finally:
                yield Close(response)

    def wait(self, work_id: str, progress: bool | Watcher, timeout: float | None) -> Flow[W]:
        """Follow to the end; raise `JobFailed` when it did not succeed, and `WaitExpired`."""
        view = RunProgress() if progress is True else nullcontext(progress or _ignore)
        errors: list[str] = []
        with view as show:

            def take(event: JobEvent) -> None:
                show(event)
                if event.level == "error" and event.type is not EventType.FAILED:
                    errors.append(event.message)

            yield from feed(self.events(work_id, 0, timeout), take)
        work: W = yield from resource.get(self._exchange, self._kind, self._path, work_id)
        if work.status is not Status.SUCCEEDED:
            raise self._failure(work, errors[-1] if errors else "")
        return work

    def _failure(self, work: W, last_error: str) -> JobFailed:
        reason = work.status_reason
        parts = [f"{self._noun} {work.id} {'was cancelled' if work.status is Status.CANCELLED else work.status.value}"]
        parts += [reason.message] if reason else []
        message = ": ".join(parts)
        if last_error and last_error not in message:
            message += f" (last error: {last_error})"
        return JobFailed(message, job_id=work.id, status=work.status.value, reason_code=reason.code if reason else None)


def _event(line: str) -> JobEvent:
    try:
        return JobEvent.model_validate_json(line.removeprefix("data:"))
    except ValueError as error:
        raise ServiceError(f"the stream holds something that is no event: {line[:200]!r}") from error


def _ignore(event: JobEvent) -> None:
    pass


def _may_pass(error: ServiceUnreachable | RequestFailed) -> bool:
    return isinstance(error, ServiceUnreachable) or error.retryable or error.status in (429, 502, 503, 504)
