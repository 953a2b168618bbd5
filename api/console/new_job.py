"""The guided form of a new job, and the estimate that follows what is typed."""

from flask import Blueprint, render_template, request
from werkzeug.datastructures import MultiDict

from api.auth import caller, needs, project_id
from api.console.forms import document
from api.console.frame import is_fragment, refused
from api.console.job_form import fresh_values, posted_values, spec_document, values_of
from api.console.outlook import Outlook, outlook
from api.datasets import PreviewQuery, rows_of
from api.state import state
from api.targets import known_targets
from foundry.errors import UserError
from foundry.spec.access import Scope
from foundry.spec.formats import FORMATS
from foundry.spec.stages import Correct, Distill, Evaluate, Lora, Prune
from foundry.spec.suite import suites

new_job = Blueprint("new_job", __name__)
_CHOICES = 100
"""Datasets and models that the form offers; older ones can be named by their id."""
_GLANCE_ROWS = 3
_GLANCE_CHARACTERS = 240


@new_job.get("/jobs/new")
@needs(Scope.JOBS_READ)
def show() -> str:
    """An empty form, or one that repeats another job: `?from=JOB`; `?data=` and `?teacher=` choose those."""
    parent = request.args.get("from", "")
    if parent:
        return page(values_of(state().jobs.get(project_id(), parent).spec), parent)
    return page(fresh_values(request.args.get("data", ""), request.args.get("teacher", "") or _latest_teacher()))


@new_job.post("/jobs/estimate")
@needs(Scope.JOBS_READ)
def estimate() -> str | tuple[str, int]:
    """What the form would give as it stands: a fragment for the script, else the whole form with it."""
    seen: Outlook | None = None
    try:
        seen = outlook(spec_document(request.form))
    except UserError as error:
        if is_fragment():
            return render_template("fragments/no_estimate.html", error=error, form=document(request.form))
        return refused(error, lambda: page(posted_values(), request.form.get("parent", "")), status=200)
    if is_fragment():
        return render_template("fragments/estimate.html", seen=seen)
    return page(posted_values(), request.form.get("parent", ""), seen)


@new_job.get("/jobs/new/glance/<dataset_id>")
@needs(Scope.DATASETS_READ)
def glance(dataset_id: str) -> str:
    """What a dataset holds, in few words and rows."""
    report = state().datasets.report(project_id(), dataset_id)
    rows = rows_of(dataset_id, PreviewQuery(limit=_GLANCE_ROWS, characters=_GLANCE_CHARACTERS)).data
    return render_template("fragments/glance.html", report=report, rows=rows, dataset_id=dataset_id)


def page(values: MultiDict[str, str], parent: str = "", seen: Outlook | None = None) -> str:
    """The form with these values."""
    memory, project = state(), project_id()
    scopes = caller().scopes
    return render_template(
        "new_job.html", values=values, parent=parent, seen=seen, formats=FORMATS, stages=_stage_defaults(),
        suites=[("", "none"), *((name, name) for name in sorted(suites()))], targets=known_targets(),
        datasets=memory.datasets.list(project, _CHOICES).data if Scope.DATASETS_READ in scopes else (),
        models=memory.models.list(project, _CHOICES).data if Scope.MODELS_READ in scopes else (),
        roots=memory.settings.teacher_roots, hub_allowed=memory.settings.hub_allowed,
    )  # fmt: skip


def _latest_teacher() -> str:
    """What the project's last job had: most jobs cut the same teacher again."""
    latest = state().jobs.list(project_id(), 1).data
    return latest[0].spec.teacher if latest else ""


def _stage_defaults() -> dict[str, object]:
    """What holds where a field is left empty."""
    return {"correct": Correct(), "prune": Prune(), "distill": Distill(), "lora": Lora(), "evaluate": Evaluate()}
