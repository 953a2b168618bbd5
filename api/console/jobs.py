"""Jobs: the list, one job as it goes on, and what can be asked of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flask import Blueprint, Response, flash, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api.auth import caller, needs, project_id
from api.console import new_job
from api.console.figures import figures_of
from api.console.forms import once
from api.console.frame import refused
from api.console.job_form import posted_values, spec_document
from api.jobs import JobsQuery, queue_again, submit, submit_again
from api.state import state
from foundry.errors import FoundryError
from foundry.spec.access import Scope
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import STAGES, EventType, JobEvent, Status
from foundry.spec.record import parse
from foundry.spec.resources import Job, Variant

jobs = Blueprint("jobs", __name__)
_SHOWN_EVENTS = 60
_SHOWN_ATTEMPTS = 100


class StageState(NamedTuple):
    """One stage of a job's line."""

    name: str
    state: str
    """done, now, skipped, stopped or ahead."""


@jobs.get("/jobs")
@needs(Scope.JOBS_READ)
def list_jobs() -> str:
    """The project's jobs, newest first."""
    query = parse(JobsQuery, {name: value for name, value in request.args.items() if value}, prefix="/query")
    page = state().jobs.list(project_id(), query.limit, query.after, query.status)
    return render_template("jobs.html", page=page, status=query.status, after=query.after)


@jobs.post("/jobs")
@needs(Scope.JOBS_WRITE)
def create() -> AnyResponse | tuple[str, int]:
    """Submit what the form says; sent twice it is one job."""
    parent = request.form.get("parent", "")
    try:
        if parent:
            state().jobs.get(project_id(), parent)  # another project's job is nobody's parent
        spec = parse(JobSpec, spec_document(request.form))
        job = submit(spec, once(parent, spec.model_dump_json()), parent or None)
    except FoundryError as error:
        return refused(error, lambda: new_job.page(posted_values(), parent))
    return redirect(url_for("jobs.get_job", job_id=job.id), 303)


@jobs.get("/jobs/<job_id>")
@needs(Scope.JOBS_READ)
def get_job(job_id: str) -> str:
    """One job as it stands; a script keeps it up to date."""
    shown = _standing(job_id)
    spec = shown["job"].spec.model_dump_json(indent=2, exclude_defaults=True)
    return render_template("job.html", **shown, spec=spec)


@jobs.get("/jobs/<job_id>/panel")
@needs(Scope.JOBS_READ)
def panel(job_id: str) -> str:
    """The part of the page that a change of status changes."""
    return render_template("fragments/panel.html", **_standing(job_id))


@jobs.get("/jobs/<job_id>/figures")
@needs(Scope.JOBS_READ)
def figures(job_id: str) -> Response:
    """What the run has measured, as series to draw."""
    return jsonify(figures_of(state().history, project_id(), job_id))


@jobs.post("/jobs/<job_id>/cancel")
@needs(Scope.JOBS_WRITE)
def cancel(job_id: str) -> AnyResponse:
    """Stop a job for good."""
    return _back(state().jobs.cancel(project_id(), job_id))


@jobs.post("/jobs/<job_id>/pause")
@needs(Scope.JOBS_WRITE)
def pause(job_id: str) -> AnyResponse:
    """Let a job wait."""
    return _back(state().jobs.pause(project_id(), job_id))


@jobs.post("/jobs/<job_id>/resume")
@needs(Scope.JOBS_WRITE)
def resume(job_id: str) -> AnyResponse:
    """Queue a paused job again."""
    return _back(queue_again(job_id))


@jobs.post("/jobs/<job_id>/retry")
@needs(Scope.JOBS_WRITE)
def retry(job_id: str) -> AnyResponse:
    """Submit a failed or cancelled job anew."""
    return _back(submit_again(job_id, once()))


@jobs.post("/jobs/<job_id>/delete")
@needs(Scope.JOBS_WRITE)
def delete(job_id: str) -> AnyResponse:
    """Delete an ended job."""
    state().removal.job(project_id(), job_id)
    flash("The job and its history are deleted.")
    return redirect(url_for("jobs.list_jobs"), 303)


def _standing(job_id: str) -> dict[str, Any]:
    """All that the page of a job shows and its panel shows again."""
    memory, project = state(), project_id()
    job = memory.jobs.get(project, job_id)
    last_seq, events = memory.history.latest(project, job_id, _SHOWN_EVENTS)
    return {
        "job": job, "last_seq": last_seq, "events": events, "stages": _line(job, events), "variants": _variants(job),
        "attempts": memory.history.attempts(project, job_id, _SHOWN_ATTEMPTS).data,
    }  # fmt: skip


def _back(job: Job) -> AnyResponse:
    return redirect(url_for("jobs.get_job", job_id=job.id), 303)


def _variants(job: Job) -> Sequence[Variant]:
    """The job's variants; none for a key that may not see them."""
    if not job.variant_ids or Scope.VARIANTS_READ not in caller().scopes:
        return ()
    return state().variants.list(project_id(), job.id, limit=len(job.variant_ids)).data


def _line(job: Job, events: Sequence[JobEvent]) -> list[StageState]:
    """Every stage of the job and where the run stands among them."""
    absent = {name for name in ("correct", "distill", "lora") if getattr(job.spec, name) is None}
    wanted = [name for name in STAGES if name not in absent]
    skipped = {event.data.get("stage") for event in events if event.type is EventType.STAGE_SKIPPED}
    at = wanted.index(job.stage) if job.stage in wanted else -1
    now = _NOW.get(job.status, "stopped")
    found = []
    for place, name in enumerate(wanted):
        if job.status is Status.SUCCEEDED or place < at:
            stands = "skipped" if name in skipped else "done"
        else:
            stands = now if place == at else "ahead"
        found.append(StageState(name, stands))
    return found


_NOW: Mapping[Status, str] = {Status.RUNNING: "now", Status.PAUSING: "now", Status.CANCELLING: "now"}
