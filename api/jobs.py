"""/v1/customization/jobs: submit, look, steer."""

from apiflask import APIBlueprint

from api.admission import admit
from api.auth import project_id
from api.idempotency import CreateHeaders, idempotency
from api.pages import PageQuery, page_of
from api.queue import ring
from api.state import state
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import Status
from foundry.spec.resources import Attempt, Job, Page

jobs = APIBlueprint("jobs", __name__)


class JobsQuery(PageQuery):
    """A page of jobs, of one status or of all."""

    status: Status | None = None
    """Only jobs that stand there."""


@jobs.post("/customization/jobs")
@jobs.input(JobSpec)
@jobs.input(CreateHeaders, location="headers")
@jobs.output(Job, 201)
@jobs.doc(responses=[400, 415])
def create(json_data: JobSpec, headers_data: CreateHeaders) -> Job:
    """Submit a job.

    Refused with 422 before anything is written when teacher, data or a target's budget cannot work.
    """
    inputs = admit(json_data, project_id())
    once = idempotency(headers_data, json_data.model_dump_json())
    job = state().jobs.submit(project_id(), json_data, inputs, once)
    ring(state().settings.broker_url, job.id)
    return job


@jobs.get("/customization/jobs")
@jobs.input(JobsQuery, location="query")
@jobs.output(Page[Job])
def list_jobs(query_data: JobsQuery) -> Page[Job]:
    """The project's jobs, newest first."""
    return state().jobs.list(project_id(), query_data.limit, query_data.after, query_data.status)


@jobs.get("/customization/jobs/<job_id>")
@jobs.output(Job)
def get_job(job_id: str) -> Job:
    """One job as it stands."""
    return state().jobs.get(project_id(), job_id)


@jobs.post("/customization/jobs/<job_id>/cancel")
@jobs.output(Job)
@jobs.doc(responses=[409])
def cancel(job_id: str) -> Job:
    """Stop a job for good; a running one is `cancelling` until its worker has let go."""
    return state().jobs.cancel(project_id(), job_id)


@jobs.post("/customization/jobs/<job_id>/pause")
@jobs.output(Job)
@jobs.doc(responses=[409])
def pause(job_id: str) -> Job:
    """Let a job wait; a running one is `pausing` until its checkpoint is written."""
    return state().jobs.pause(project_id(), job_id)


@jobs.post("/customization/jobs/<job_id>/resume")
@jobs.output(Job)
@jobs.doc(responses=[409])
def resume(job_id: str) -> Job:
    """Queue a paused job again; it goes on at its last checkpoint."""
    job = state().jobs.resume(project_id(), job_id)
    ring(state().settings.broker_url, job.id)
    return job


@jobs.get("/customization/jobs/<job_id>/attempts")
@jobs.input(PageQuery, location="query")
@jobs.output(Page[Attempt])
def list_attempts(job_id: str, query_data: PageQuery) -> Page[Attempt]:
    """Every claim of the job by a worker, in order."""
    attempts = state().jobs.attempts(project_id(), job_id)
    return page_of(attempts, query_data, lambda attempt: str(attempt.attempt))
