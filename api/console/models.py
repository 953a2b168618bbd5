"""Models: the teachers that the project has registered."""

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api.auth import needs, project_id
from api.console.forms import document, once
from api.console.frame import refused
from api.console.sketch import bars
from api.console.variants import evaluations_of
from api.models import ModelBody, register
from api.pages import PageQuery
from api.state import state
from foundry.errors import FoundryError
from foundry.spec.access import Scope
from foundry.spec.record import parse

models = Blueprint("models", __name__)
_OF_KIND = {"folder": ("path",), "hub": ("repository", "revision")}


@models.get("/models")
@needs(Scope.MODELS_READ)
def list_models() -> str:
    """The project's models, newest first, and the form that registers one."""
    return _list()


@models.post("/models")
@needs(Scope.MODELS_WRITE)
def create() -> AnyResponse | tuple[str, int]:
    """Register a folder of the service, or a model on the hub by its commit."""
    kind = request.form.get("kind", "folder")
    fields = document(request.form)
    source = {"kind": kind} | {name: fields[name] for name in _OF_KIND.get(kind, ()) if name in fields}
    try:
        body = parse(ModelBody, {"name": fields.get("name", ""), "source": source})
        model = register(body, once(body.model_dump_json()))
    except FoundryError as error:
        return refused(error, _list)
    return redirect(url_for("models.get_model", model_id=model.id), 303)


@models.get("/models/<model_id>")
@needs(Scope.MODELS_READ)
def get_model(model_id: str) -> str:
    """One model."""
    model = state().models.get(project_id(), model_id)
    drawing = bars(model.shape, model.shape) if model.shape else ()
    return render_template("model.html", model=model, drawing=drawing, evaluated=evaluations_of(model_id))


@models.post("/models/<model_id>/delete")
@needs(Scope.MODELS_WRITE)
def delete(model_id: str) -> AnyResponse:
    """Forget a model."""
    state().removal.model(project_id(), model_id)
    flash("The model is forgotten. Uploaded files go; a folder of the service stays.")
    return redirect(url_for("models.list_models"), 303)


def _list() -> str:
    query = parse(PageQuery, request.args.to_dict(), prefix="/query")
    settings = state().settings
    return render_template(
        "models.html", page=state().models.list(project_id(), query.limit, query.after), after=query.after,
        roots=settings.teacher_roots, hub_allowed=settings.hub_allowed,
    )  # fmt: skip
