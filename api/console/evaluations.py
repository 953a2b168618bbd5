"""Evaluations: the form, the list, one evaluation as it goes on and what it found."""

from typing import Any, NamedTuple

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api.auth import caller, needs, project_id
from api.console.forms import document, once
from api.console.frame import refused
from api.evaluations import EvaluationsQuery, queue_again, submit
from api.state import state
from foundry.errors import FoundryError, NotFound
from foundry.spec.access import Scope
from foundry.spec.evaluation import PLAIN, Evaluation, EvaluationSpec
from foundry.spec.formats import FORMATS
from foundry.spec.lifecycle import WorkKind
from foundry.spec.record import parse
from foundry.spec.resources import Variant
from foundry.spec.suite import TaskResult, suites

evaluations = Blueprint("evaluations", __name__)
_CHOICES = 100
"""Variants, models and datasets that the form offers; older ones can be named by their id."""
_OPENED = tuple(form for form in FORMATS if form == PLAIN or form.startswith("gguf:"))
"""What can be put to benchmarks."""
_NORMAL_95 = 1.96


class Scored(NamedTuple):
    """One task with the interval that its standard error gives."""

    task: TaskResult
    interval: tuple[float, float] | None
    """Where the score would fall in 95 of 100 other samples of such questions."""


@evaluations.get("/evaluations")
@needs(Scope.JOBS_READ)
def list_evaluations() -> str:
    """The project's evaluations, newest first."""
    given = {name: value for name, value in request.args.items() if value}
    query = parse(EvaluationsQuery, given, prefix="/query")
    page = state().evaluations.list(project_id(), query.limit, query.after, query.status, query.model)
    kept = {"status": query.status and query.status.value, "model": query.model}
    return render_template(
        "evaluations.html", page=page, status=query.status, model=query.model, after=query.after,
        kept={name: value for name, value in kept.items() if value},
    )  # fmt: skip


@evaluations.get("/evaluations/new")
@needs(Scope.JOBS_READ)
def new() -> str:
    """An empty form; `?model=` is what it is about."""
    return _form(request.args.get("model", ""))


@evaluations.post("/evaluations")
@needs(Scope.JOBS_WRITE)
def create() -> AnyResponse | tuple[str, int]:
    """Queue what the form says; sent twice it is one evaluation."""
    try:
        spec = parse(EvaluationSpec, document(request.form, {"tasks"}))
        made = submit(spec, once(spec.model_dump_json()))
    except FoundryError as error:
        return refused(error, lambda: _form(request.form.get("model", ""), again=True))
    return redirect(url_for("evaluations.get_evaluation", evaluation_id=made.id), 303)


@evaluations.get("/evaluations/<evaluation_id>")
@needs(Scope.JOBS_READ)
def get_evaluation(evaluation_id: str) -> str:
    """One evaluation as it stands; a script keeps it up to date."""
    return render_template("evaluation.html", **_standing(evaluation_id))


@evaluations.get("/evaluations/<evaluation_id>/panel")
@needs(Scope.JOBS_READ)
def panel(evaluation_id: str) -> str:
    """The part of the page that changes while the evaluation goes on."""
    return render_template("fragments/evaluation.html", **_standing(evaluation_id))


@evaluations.post("/evaluations/<evaluation_id>/cancel")
@needs(Scope.JOBS_WRITE)
def cancel(evaluation_id: str) -> AnyResponse:
    """Stop an evaluation for good."""
    return _back(state().evaluations.order(project_id(), evaluation_id, "cancel"))


@evaluations.post("/evaluations/<evaluation_id>/pause")
@needs(Scope.JOBS_WRITE)
def pause(evaluation_id: str) -> AnyResponse:
    """Let an evaluation wait."""
    return _back(state().evaluations.order(project_id(), evaluation_id, "pause"))


@evaluations.post("/evaluations/<evaluation_id>/resume")
@needs(Scope.JOBS_WRITE)
def resume(evaluation_id: str) -> AnyResponse:
    """Queue a paused evaluation again."""
    return _back(queue_again(evaluation_id))


@evaluations.post("/evaluations/<evaluation_id>/delete")
@needs(Scope.JOBS_WRITE)
def delete(evaluation_id: str) -> AnyResponse:
    """Delete an ended evaluation."""
    state().removal.job(project_id(), evaluation_id, WorkKind.EVALUATION)
    flash("The evaluation and what it found are deleted.")
    return redirect(url_for("evaluations.list_evaluations"), 303)


def scored(task: TaskResult) -> Scored:
    """A task with its interval: the score and 1.96 standard errors to both sides, within 0 and 1."""
    if task.value is None or task.standard_error is None:
        return Scored(task, None)
    reach = _NORMAL_95 * task.standard_error
    return Scored(task, (max(0.0, task.value - reach), min(1.0, task.value + reach)))


def _form(model: str, *, again: bool = False) -> str:
    """The form about a model. One of an address has to be there; one that was typed is judged when it is sent."""
    memory, project, scopes = state(), project_id(), caller().scopes
    sees_variants, sees_models = Scope.VARIANTS_READ in scopes, Scope.MODELS_READ in scopes
    variants = list(memory.variants.list(project, None, _CHOICES).data) if sees_variants else []
    models = memory.models.list(project, _CHOICES).data if sees_models else ()
    chosen = next((variant for variant in variants if variant.id == model), None)
    if model and not again:
        if model.startswith("mdl_") and sees_models:
            memory.models.get(project, model)
        elif sees_variants and chosen is None:
            chosen = memory.variants.get(project, model)
    offered = sorted(suites().values(), key=lambda suite: len(suite.tasks))
    tasks = {task.task: task for suite in offered for task in suite.tasks}
    return render_template(
        "new_evaluation.html", model=model, chosen=chosen, variants=variants, models=models,
        formats=[(form, form) for form in _formats(chosen)], suites=offered, tasks=tasks.values(),
        datasets=memory.datasets.list(project, _CHOICES).data if Scope.DATASETS_READ in scopes else (),
    )  # fmt: skip


def _formats(variant: Variant | None) -> tuple[str, ...]:
    """Those of a variant that can be put to benchmarks; all of them where it is not known which variant."""
    if variant is None:
        return _OPENED
    shipped = {file.format for file in variant.files}
    return tuple(form for form in _OPENED if form in shipped)


def _standing(evaluation_id: str) -> dict[str, Any]:
    """All that the page shows and shows again."""
    evaluation = state().evaluations.get(project_id(), evaluation_id)
    found = evaluation.result
    tasks = found.benchmarks.tasks if found and found.benchmarks else ()
    suite = evaluation.spec.chosen_suite()
    return {
        "evaluation": evaluation, "found": found, "scores": [scored(task) for task in tasks],
        "job_id": _job_of(evaluation), "tasks_asked": len(suite.tasks) if suite else 0,
        "spec": evaluation.spec.model_dump_json(indent=2, exclude_defaults=True),
    }  # fmt: skip


def _job_of(evaluation: Evaluation) -> str | None:
    """The job whose report stands beside what was found; None for a model, a variant that is gone or not to be seen."""
    if not evaluation.spec.model.startswith("var_") or Scope.VARIANTS_READ not in caller().scopes:
        return None
    try:
        return state().variants.get(project_id(), evaluation.spec.model).job_id
    except NotFound:
        return None


def _back(evaluation: Evaluation) -> AnyResponse:
    return redirect(url_for("evaluations.get_evaluation", evaluation_id=evaluation.id), 303)
