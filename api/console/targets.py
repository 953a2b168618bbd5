"""Targets: the devices that a job can be for, and those that a project describes itself."""

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api.auth import needs, project_id
from api.console.forms import document
from api.console.frame import refused
from api.state import state
from api.targets import TargetBody, describe_target, known_targets
from foundry.errors import FoundryError
from foundry.spec.access import Scope
from foundry.spec.formats import FORMATS
from foundry.spec.record import parse

targets = Blueprint("targets", __name__)


@targets.get("/targets")
@needs(Scope.TARGETS_READ)
def list_targets() -> str:
    """All devices as cards, and the form that describes another."""
    return _list()


@targets.post("/targets")
@needs(Scope.TARGETS_WRITE)
def put_target() -> AnyResponse | tuple[str, int]:
    """Describe a device, or describe one of the project's own anew."""
    fields = document(request.form)
    name, limit, amount = (fields.pop(field, "") for field in ("name", "limit", "amount"))
    try:
        body = parse(TargetBody, fields | ({limit or "max_bytes": amount} if amount else {}))
        target = describe_target(name, body)
    except FoundryError as error:
        return refused(error, _list)
    flash(f"{target.name} can be a target of jobs now.")
    return redirect(url_for("targets.list_targets"), 303)


@targets.post("/targets/<name>/delete")
@needs(Scope.TARGETS_WRITE)
def delete_target(name: str) -> AnyResponse:
    """Forget a device of the project's own."""
    state().targets.delete(project_id(), name)
    flash(f"{name} is forgotten; jobs that named it keep what it was.")
    return redirect(url_for("targets.list_targets"), 303)


def _list() -> str:
    return render_template(
        "targets.html",
        targets=known_targets(),
        formats=[("", "the job's first GGUF"), *((name, name) for name in FORMATS)],
    )
