"""`foundry.jobs`: create, look, steer, wait."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import httpx2

from foundry.client import resource
from foundry.client.exchange import backoff_s, below
from foundry.client.flow import Close, Emit, Flow, Items, NextLine, Resource, Sleep, T, feed, listing, verb
from foundry.client.pages import every
from foundry.client.progress import RunProgress
from foundry.errors import JobFailed, RequestFailed, ServiceError, ServiceUnreachable, WaitExpired
from foundry.spec.forecast import JobEstimate
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, JobEvent, Level, Status
from foundry.spec.record import parse
from foundry.spec.resources import Attempt, Job, JobCheckpoint, JobMetrics, Page

_PATH = "/v1/customization/jobs"
_LAST = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})
_POLL_S = 25.0
"""How long the service holds a request for events open before it answers that there are none."""
_STREAM_SILENCE_S = 45.0
"""The service says something at least every 15 seconds."""

Watcher = Callable[[JobEvent], None]


class Jobs(Resource[T]):
    """Customization jobs of the key's project."""

    @verb
    def create(
        self, /, spec: JobSpec | Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, **fields: Any
    ) -> Flow[Job]:
        """Submit a job: a `JobSpec`, a mapping with its fields, or the fields as keywords.

        One idempotency key covers all tries of one call, so that a lost answer never makes a second job; give your own
        to cover tries of your program too. Raises `InvalidSpec` before anything is sent, or a refusal that names the
        fields.
        """
        return (yield from resource.create(self._transport, Job, _PATH, spec_body(spec, fields), idempotency_key))

    @verb
    def estimate(self, /, spec: JobSpec | Mapping[str, Any] | None = None, **fields: Any) -> Flow[JobEstimate]:
        """What a job would give and take, by arithmetic and by what earlier jobs took; nothing is stored.

        Raises a refusal with the smallest reachable size in its problem document when a budget cannot be met.
        """
        path, body = "/v1/customization/estimates", spec_body(spec, fields)
        return (yield from resource.change(self._transport, JobEstimate, "POST", path, body))

    @verb
    def get(self, job_id: str) -> Flow[Job]:
        """One job as it stands now; raises `NotFound`."""
        return (yield from resource.get(self._transport, Job, _PATH, job_id))

    @listing
    def list(self, *, status: Status | str | None = None, limit: int | None = None) -> Items[Job]:
        """Every job, newest first; `status` keeps those that stand there."""
        return every(self._transport, _PATH, Job, limit=limit, status=status)

    @listing
    def attempts(self, job_id: str) -> Items[Attempt]:
        """Every claim of the job by a worker, in order."""
        return every(self._transport, below(_PATH, job_id, "attempts"), Attempt)

    @listing
    def checkpoints(self, job_id: str) -> Items[JobCheckpoint]:
        """Every checkpoint that was written, in order."""
        return every(self._transport, below(_PATH, job_id, "checkpoints"), JobCheckpoint)

    @listing
    def metrics(self, job_id: str) -> Items[JobMetrics]:
        """Losses, speeds and whatever else the run measured, in order."""
        return every(self._transport, below(_PATH, job_id, "metrics"), JobMetrics)

    @listing
    def logs(self, job_id: str, *, level: Level = "info", limit: int | None = None) -> Items[JobEvent]:
        """What the job said in words, from `level` upwards, in order."""
        return every(self._transport, below(_PATH, job_id, "logs"), JobEvent, level=level, limit=limit)

    @verb
    def cancel(self, job_id: str) -> Flow[Job]:
        """Stop the job for good; raises `StateConflict` when it has ended."""
        return (yield from self._order(job_id, "cancel"))

    @verb
    def pause(self, job_id: str) -> Flow[Job]:
        """Let the job write a checkpoint and wait for `resume`."""
        return (yield from self._order(job_id, "pause"))

    @verb
    def resume(self, job_id: str) -> Flow[Job]:
        """Queue a paused job again."""
        return (yield from self._order(job_id, "resume"))

    @verb
    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Flow[Job]:
        """Submit a failed or cancelled job anew, as a job of its own; raises `StateConflict` for another."""
        path = below(_PATH, job_id, "retry")
        return (yield from resource.create(self._transport, Job, path, None, idempotency_key))

    @verb
    def clone(
        self, /, job_id: str, changes: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None,
        **fields: Any,
    ) -> Flow[Job]:  # fmt: skip
        """Submit a job like this one with other fields, as a mapping or as keywords.

        They are merged as JSON Merge Patch does (RFC 7396): None takes a field back to its default.
        """
        body = {"changes": _plain({**(changes or {}), **fields})}
        return (yield from resource.create(self._transport, Job, below(_PATH, job_id, "clone"), body, idempotency_key))

    @verb
    def delete(self, job_id: str) -> Flow[None]:
        """Delete an ended job without variants and its history; raises `StateConflict` for another."""
        yield from resource.delete(self._transport, below(_PATH, job_id))

    def _order(self, job_id: str, order: str) -> Flow[Job]:
        return resource.change(self._transport, Job, "POST", below(_PATH, job_id, order))

    @listing
    def events(
        self, job_id: str, after: int = 0, *, timeout: float | None = None, patience_s: float = 300.0
    ) -> Items[JobEvent]:
        """The job's history from event `after` + 1 on, then each new event as it happens, until the last one.

        Reads by long polling: every answer ends, so a dropped connection or a restarted service costs nothing but the
        next request, which goes on after the last event seen. A service that has answered before may be away for
        `patience_s` seconds. Raises `WaitExpired` after `timeout` seconds.
        """
        return self._events(job_id, after, timeout, patience_s)

    def _events(self, job_id: str, after: int, timeout: float | None, patience_s: float = 300.0) -> Items[JobEvent]:
        deadline = None if timeout is None else time.monotonic() + timeout
        answered_at: float | None = None
        seen, failures = after, 0
        while True:
            try:
                page = yield from self._poll(job_id, seen, deadline)
                ended = False
                if not page:
                    job = yield from resource.get(self._transport, Job, _PATH, job_id)
                    ended = job.is_terminal
                if ended:  # the last events may have come between the two answers
                    page = yield from self._poll(job_id, seen, deadline=0.0)
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
                    ended = ended or event.type in _LAST
                if ended:
                    return
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitExpired(
                    f"job {job_id} had not ended after {timeout:g} s; it goes on: `foundry watch {job_id}`"
                )

    def _poll(self, job_id: str, after: int, deadline: float | None) -> Flow[tuple[JobEvent, ...]]:
        wait_s = _POLL_S if deadline is None else max(0.0, min(_POLL_S, deadline - time.monotonic()))
        response = yield from self._transport.call(
            "GET", below(_PATH, job_id, "events"),
            params={"after": after, "wait": math.ceil(wait_s)}, timeout=wait_s + 30,
        )  # fmt: skip
        return self._transport.read(Page[JobEvent], response).data

    @listing
    def stream(self, job_id: str, after: int = 0) -> Items[JobEvent]:
        """Like `events`, over one open connection (server-sent events): each arrives within a tenth of a second or so.

        A connection that is cut is opened again after the last event seen, as long as the service can be reached.
        Where a proxy holds streams back, use `events`.
        """
        seen = after
        while True:
            response = yield from self._transport.call(
                "GET", below(_PATH, job_id, "events"), params={"after": seen},
                headers={"Accept": "text/event-stream"}, timeout=_STREAM_SILENCE_S, stream=True,
            )  # fmt: skip
            try:
                if response.status_code == 204:  # all events are seen
                    return
                lines = self._transport.lines(response)
                while (line := (yield NextLine(lines))) is not None:
                    if line.startswith("data:"):
                        event = _event(line)
                        seen = event.seq
                        yield Emit(event)
                        if event.type in _LAST:
                            return
            except httpx2.RequestError:
                yield Sleep(backoff_s(0))
            finally:
                yield Close(response)

    @verb
    def wait(self, job_id: str, *, progress: bool | Watcher = True, timeout: float | None = None) -> Flow[Job]:
        """Follow a job to its end and return it.

        `progress` shows a live picture on the terminal (lines where there is none), or is called with every event.
        Raises `JobFailed` when the job failed or was cancelled, and `WaitExpired` after `timeout` seconds.
        """
        view = RunProgress() if progress is True else nullcontext(progress or _ignore)
        errors: list[str] = []
        with view as show:

            def take(event: JobEvent) -> None:
                show(event)
                if event.level == "error" and event.type is not EventType.FAILED:
                    errors.append(event.message)

            yield from feed(self._events(job_id, 0, timeout), take)
        job = yield from resource.get(self._transport, Job, _PATH, job_id)
        if job.status is not Status.SUCCEEDED:
            raise _failure(job, errors[-1] if errors else "")
        return job


def _event(line: str) -> JobEvent:
    try:
        return JobEvent.model_validate_json(line.removeprefix("data:"))
    except ValueError as error:
        raise ServiceError(f"the stream holds something that is no event: {line[:200]!r}") from error


def spec_body(spec: JobSpec | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a spec: what the user wrote and no defaults, so that the service's own apply."""
    if spec is None:
        spec = fields
    elif fields:
        raise TypeError("give a spec or its fields, not both")
    record = spec if isinstance(spec, JobSpec) else parse(JobSpec, _plain(spec))
    return record.model_dump(mode="json", exclude_unset=True)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as text, as they stand in a spec file."""
    return {name: str(value) if name in ("teacher", "data") else value for name, value in fields.items()}


def _ignore(event: JobEvent) -> None:
    pass


def _may_pass(error: ServiceUnreachable | RequestFailed) -> bool:
    return isinstance(error, ServiceUnreachable) or error.retryable or error.status in (429, 502, 503, 504)


def _failure(job: Job, last_error: str) -> JobFailed:
    reason = job.status_reason
    parts = [f"job {job.id} {'was cancelled' if job.status is Status.CANCELLED else job.status.value}"]
    parts += [reason.message] if reason else []
    message = ": ".join(parts)
    if last_error and last_error not in message:
        message += f" (last error: {last_error})"
    return JobFailed(message, job_id=job.id, status=job.status.value, reason_code=reason.code if reason else None)
