"""/v1/customization/jobs: submit, look, steer."""

import structlog
from apiflask import APIBlueprint
from pydantic import Field

from api.admission import admit
from api.auth import needs, project_id
from api.idempotency import CreateHeaders, idempotency
from api.pages import PageQuery
from api.queue import ring
from api.records import Body
from api.state import state
from foundry.errors import IllegalTransition, UserError
from foundry.spec.access import Scope
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import Status
from foundry.spec.record import parse
from foundry.spec.resources import Job, Page
from foundry.store.records import Idempotency, JobInputs

jobs = APIBlueprint("jobs", __name__)
_log = structlog.get_logger()


class JobsQuery(PageQuery):
    """A page of jobs, of one status or of all."""

    status: Status | None = None
    """Only jobs that stand there."""


class CloneBody(Body):
    """What is to be different in the new job."""

    changes: dict[str, object] = Field(default_factory=dict)
    """Fields of a spec as in JSON Merge Patch (RFC 7396): null takes a field back to its default."""


@jobs.post("/customization/jobs")
@needs(Scope.JOBS_WRITE)
@jobs.input(JobSpec)
@jobs.input(CreateHeaders, location="headers")
@jobs.output(Job, 201)
@jobs.doc(responses=[400, 415])
def create(json_data: JobSpec, headers_data: CreateHeaders) -> Job:
    """Submit a job.

    Refused with 422 before anything is written when teacher, data or a target's budget cannot work.
    """
    return submit(json_data, idempotency(headers_data, json_data.model_dump_json()))


@jobs.get("/customization/jobs")
@needs(Scope.JOBS_READ)
@jobs.input(JobsQuery, location="query")
@jobs.output(Page[Job])
def list_jobs(query_data: JobsQuery) -> Page[Job]:
    """The project's jobs, newest first."""
    return state().jobs.list(project_id(), query_data.limit, query_data.after, query_data.status)


@jobs.get("/customization/jobs/<job_id>")
@needs(Scope.JOBS_READ)
@jobs.output(Job)
def get_job(job_id: str) -> Job:
    """One job as it stands."""
    return state().jobs.get(project_id(), job_id)


@jobs.delete("/customization/jobs/<job_id>")
@needs(Scope.JOBS_WRITE)
@jobs.output({}, 204)
@jobs.doc(responses=[409])
def delete(job_id: str) -> str:
    """Delete an ended job with its history. Refused with 409 while it goes on or has variants."""
    state().removal.job(project_id(), job_id)
    return ""


@jobs.post("/customization/jobs/<job_id>/cancel")
@needs(Scope.JOBS_WRITE)
@jobs.output(Job)
@jobs.doc(responses=[409])
def cancel(job_id: str) -> Job:
    """Stop a job for good; a running one is `cancelling` until its worker has let go."""
    return state().jobs.cancel(project_id(), job_id)


@jobs.post("/customization/jobs/<job_id>/pause")
@needs(Scope.JOBS_WRITE)
@jobs.output(Job)
@jobs.doc(responses=[409])
def pause(job_id: str) -> Job:
    """Let a job wait; a running one is `pausing` until its checkpoint is written."""
    return state().jobs.pause(project_id(), job_id)


@jobs.post("/customization/jobs/<job_id>/resume")
@needs(Scope.JOBS_WRITE)
@jobs.output(Job)
@jobs.doc(responses=[409])
def resume(job_id: str) -> Job:
    """Queue a paused job again; it goes on at its last checkpoint."""
    return queue_again(job_id)


@jobs.post("/customization/jobs/<job_id>/retry")
@needs(Scope.JOBS_WRITE)
@jobs.input(CreateHeaders, location="headers")
@jobs.output(Job, 201)
@jobs.doc(responses=[409])
def retry(job_id: str, headers_data: CreateHeaders) -> Job:
    """Submit a failed or cancelled job anew: a job of its own, with the same spec, whose `parent_id` is this one."""
    return submit_again(job_id, idempotency(headers_data))


@jobs.post("/customization/jobs/<job_id>/clone")
@needs(Scope.JOBS_WRITE)
@jobs.input(CloneBody)
@jobs.input(CreateHeaders, location="headers")
@jobs.output(Job, 201)
@jobs.doc(responses=[400, 415])
def clone(job_id: str, json_data: CloneBody, headers_data: CreateHeaders) -> Job:
    """Submit a job like this one, with changes; `parent_id` of the new one is this one."""
    once = idempotency(headers_data, json_data.model_dump_json())
    if made := state().requests.made(project_id(), once):
        return state().jobs.get(project_id(), made)
    before = state().jobs.get(project_id(), job_id).spec.model_dump(mode="json")
    spec = parse(JobSpec, patched(before, json_data.changes), prefix="/changes")
    return submit(spec, once, parent_id=job_id)


def queue_again(job_id: str) -> Job:
    """Resume a paused job of the caller's project and tell the workers."""
    job = state().jobs.resume(project_id(), job_id)
    ring(state().settings.broker_url, job.id)
    return job


def submit_again(job_id: str, once: Idempotency | None) -> Job:
    """A job with the spec of a failed or cancelled one; raise `IllegalTransition` for a job in another status."""
    if made := state().requests.made(project_id(), once):
        return state().jobs.get(project_id(), made)
    job = state().jobs.get(project_id(), job_id)
    if job.status not in (Status.FAILED, Status.CANCELLED):
        raise IllegalTransition(
            f"job {job_id} is {job.status}: only a failed or cancelled job is retried; clone it to run it once more"
        )
    return submit(job.spec, once, parent_id=job_id)


def submit(given: JobSpec, once: Idempotency | None, parent_id: str | None = None) -> Job:
    """A repeated request gets its job, whatever has become of teacher and data since.

    The store looks for it in the transaction that would make another; here only where the request would be refused now.
    """
    project, memory = project_id(), state()
    try:
        spec = memory.targets.resolve(project, given)
        inputs: JobInputs = admit(spec, project)
    except UserError:
        if made := memory.requests.made(project, once):
            return memory.jobs.get(project, made)
        raise
    job = memory.jobs.submit(project, spec, inputs, once, parent_id)
    _log.info("job submitted", job_id=job.id)  # with the id of the request, so that a worker's lines lead back to it
    ring(memory.settings.broker_url, job.id)
    return job


def patched(document: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    """JSON Merge Patch, RFC 7396."""
    merged = dict(document)
    for name, value in changes.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = patched(before if isinstance(before, dict) else {}, value)
        else:
            merged[name] = value
    return merged
