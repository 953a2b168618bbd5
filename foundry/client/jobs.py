"""`foundry.jobs`: create, look, steer, wait."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any
from uuid import uuid4

from foundry.client.pages import every
from foundry.client.progress import RunProgress
from foundry.client.transport import Transport, backoff_s, below
from foundry.errors import JobFailed, RequestFailed, ServiceUnreachable, WaitExpired
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, JobEvent, Status
from foundry.spec.record import parse
from foundry.spec.resources import Attempt, Job, Page

_PATH = "/v1/customization/jobs"
_LAST = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})
_POLL_S = 25.0
"""How long the service holds a request for events open before it answers that there are none."""

Watcher = Callable[[JobEvent], None]


class Jobs:
    """Customization jobs of the key's project."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        spec: JobSpec | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Job:
        """Submit a job: a `JobSpec`, a mapping with its fields, or the fields as keywords.

        One idempotency key covers all tries of one call, so that a lost answer never makes a second job; give your own
        to cover tries of your program too. Raises `InvalidSpec` before anything is sent, or a refusal that names the
        fields.
        """
        response = self._transport.call(
            "POST", _PATH, json=spec_body(spec, fields), headers={"Idempotency-Key": idempotency_key or uuid4().hex}
        )
        return self._transport.read(Job, response)

    def get(self, job_id: str) -> Job:
        """One job as it stands now; raises `NotFound`."""
        return self._transport.read(Job, self._transport.call("GET", below(_PATH, job_id)))

    def list(self, *, status: Status | str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Every job, newest first; `status` keeps those that stand there."""
        return every(self._transport, _PATH, Job, limit=limit, status=status)

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """Every claim of the job by a worker, in order."""
        return tuple(every(self._transport, below(_PATH, job_id, "attempts"), Attempt))

    def cancel(self, job_id: str) -> Job:
        """Stop the job for good; raises `StateConflict` when it has ended."""
        return self._order(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Let the job write a checkpoint and wait for `resume`."""
        return self._order(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._order(job_id, "resume")

    def _order(self, job_id: str, order: str) -> Job:
        return self._transport.read(Job, self._transport.call("POST", below(_PATH, job_id, order)))

    def events(
        self, job_id: str, after: int = 0, *, timeout: float | None = None, patience_s: float = 300.0
    ) -> Iterator[JobEvent]:
        """The job's history from event `after` + 1 on, then each new event as it happens, until the last one.

        Reads by long polling: every answer ends, so a dropped connection or a restarted service costs nothing but the
        next request, which goes on after the last event seen. A service that has answered before may be away for
        `patience_s` seconds. Raises `WaitExpired` after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        answered_at: float | None = None
        seen, failures = after, 0
        while True:
            try:
                page = self._poll(job_id, seen, deadline)
                ended = not page and self.get(job_id).is_terminal
                if ended:  # the last events may have come between the two answers
                    page = self._poll(job_id, seen, deadline=0.0)
            except (ServiceUnreachable, RequestFailed) as error:
                if not _may_pass(error) or answered_at is None or time.monotonic() - answered_at > patience_s:
                    raise
                time.sleep(backoff_s(failures))
                failures += 1
            else:
                answered_at, failures = time.monotonic(), 0
                for event in page:
                    seen = event.seq
                    yield event
                    ended = ended or event.type in _LAST
                if ended:
                    return
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitExpired(
                    f"job {job_id} had not ended after {timeout:g} s; it goes on: `foundry watch {job_id}`"
                )

    def _poll(self, job_id: str, after: int, deadline: float | None) -> tuple[JobEvent, ...]:
        wait_s = _POLL_S if deadline is None else max(0.0, min(_POLL_S, deadline - time.monotonic()))
        response = self._transport.call(
            "GET", below(_PATH, job_id, "events"),
            params={"after": after, "wait": math.ceil(wait_s)}, timeout=wait_s + 30,
        )  # fmt: skip
        return self._transport.read(Page[JobEvent], response).data

    def wait(self, job_id: str, *, progress: bool | Watcher = True, timeout: float | None = None) -> Job:
        """Follow a job to its end and return it.

        `progress` shows a live picture on the terminal (lines where there is none), or is called with every event.
        Raises `JobFailed` when the job failed or was cancelled, and `WaitExpired` after `timeout` seconds.
        """
        view = RunProgress() if progress is True else nullcontext(progress or _ignore)
        last_error = ""
        with view as show:
            for event in self.events(job_id, timeout=timeout):
                show(event)
                if event.level == "error" and event.type is not EventType.FAILED:
                    last_error = event.message
        job = self.get(job_id)
        if job.status is not Status.SUCCEEDED:
            raise _failure(job, last_error)
        return job


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
