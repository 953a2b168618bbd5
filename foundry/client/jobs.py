"""`foundry.jobs`: create, look, steer, wait."""

from collections.abc import Mapping
from typing import Any, Literal

from foundry.client import resource
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, listing, verb
from foundry.client.following import PATIENCE_S, Following, Watcher
from foundry.client.pages import every
from foundry.spec.forecast import JobEstimate
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import JobEvent, Level, Status
from foundry.spec.record import parse
from foundry.spec.report import JobReport
from foundry.spec.resources import Attempt, Job, JobCheckpoint, JobMetrics

_PATH = "/v1/customization/jobs"
ReportForm = Literal["html", "md", "json"]


class Jobs(Resource[T]):
    """Customization jobs of the key's project."""

    @property
    def _following(self) -> Following[Job]:
        return Following(self._transport, Job, _PATH, "job")

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
        self, job_id: str, after: int = 0, *, timeout: float | None = None, patience_s: float = PATIENCE_S
    ) -> Items[JobEvent]:
        """The job's history from event `after` + 1 on, then each new event as it happens, until the last one.

        Reads by long polling: every answer ends, so a dropped connection or a restarted service costs nothing but the
        next request, which goes on after the last event seen. A service that has answered before may be away for
        `patience_s` seconds. Raises `WaitExpired` after `timeout` seconds.
        """
        return self._following.events(job_id, after, timeout, patience_s)

    @listing
    def stream(self, job_id: str, after: int = 0) -> Items[JobEvent]:
        """Like `events`, over one open connection (server-sent events): each arrives within a tenth of a second or so.

        A connection that is cut is opened again after the last event seen, as long as the service can be reached.
        Where a proxy holds streams back, use `events`.
        """
        return self._following.stream(job_id, after)

    @verb
    def wait(self, job_id: str, *, progress: bool | Watcher = True, timeout: float | None = None) -> Flow[Job]:
        """Follow a job to its end and return it.

        `progress` shows a live picture on the terminal (lines where there is none), or is called with every event.
        Raises `JobFailed` when the job failed or was cancelled, and `WaitExpired` after `timeout` seconds.
        """
        return (yield from self._following.wait(job_id, progress, timeout))

    @verb
    def report(self, job_id: str) -> Flow[JobReport]:
        """What was asked, done, measured and spent; raises `NotFound` until a run of the job has ended."""
        return (yield from resource.get(self._transport, JobReport, _PATH, job_id, "report.json"))

    @verb
    def report_text(self, job_id: str, form: ReportForm = "html") -> Flow[str]:
        """The report for people: one page that asks nothing of any other place, or Markdown."""
        response = yield from self._transport.call("GET", below(_PATH, job_id, f"report.{form}"))
        return str(response.text)


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
