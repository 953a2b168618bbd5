"""Webhooks: endpoints, their messages, and how each message fared."""

from typing import get_args

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api.auth import needs, project_id
from api.console.forms import document, once
from api.console.frame import refused
from api.pages import PageQuery
from api.state import state
from api.webhooks import EndpointBody, register
from foundry.errors import FoundryError
from foundry.spec.access import Scope
from foundry.spec.record import parse
from foundry.spec.webhooks import HookedEvent, IssuedEndpoint

webhooks = Blueprint("webhooks", __name__)


@webhooks.get("/webhooks")
@needs(Scope.WEBHOOKS_READ)
def list_endpoints() -> str:
    """The project's endpoints, and the form that adds one."""
    return _list()


@webhooks.post("/webhooks")
@needs(Scope.WEBHOOKS_WRITE)
def create() -> str | tuple[str, int]:
    """Register an address and show its secret, this once."""
    try:
        body = parse(EndpointBody, document(request.form, lists={"events"}))
        issued = register(body, once(body.model_dump_json()))
    except FoundryError as error:
        return refused(error, _list)
    return _list(issued), 201


@webhooks.get("/webhooks/<endpoint_id>")
@needs(Scope.WEBHOOKS_READ)
def get_endpoint(endpoint_id: str) -> str:
    """One endpoint with its deliveries."""
    return _one(endpoint_id)


@webhooks.post("/webhooks/<endpoint_id>/enabled")
@needs(Scope.WEBHOOKS_WRITE)
def change(endpoint_id: str) -> AnyResponse:
    """Stop or start the messages."""
    enabled = request.form.get("enabled") == "yes"
    state().webhooks.change(project_id(), endpoint_id, url=None, events=None, enabled=enabled)
    flash("Messages are sent again." if enabled else "No message is sent until you start it again.")
    return _to(endpoint_id)


@webhooks.post("/webhooks/<endpoint_id>/rotate")
@needs(Scope.WEBHOOKS_WRITE)
def rotate(endpoint_id: str) -> tuple[str, int]:
    """Make a new secret and show it, this once."""
    return _one(endpoint_id, state().webhooks.rotate(project_id(), endpoint_id)), 201


@webhooks.post("/webhooks/<endpoint_id>/test")
@needs(Scope.WEBHOOKS_WRITE)
def test(endpoint_id: str) -> AnyResponse:
    """Send a message of the type `webhook.test`."""
    state().webhooks.test(project_id(), endpoint_id, once())
    flash("A test message waits to be sent; see below how it fares.")
    return _to(endpoint_id)


@webhooks.post("/webhooks/<endpoint_id>/deliveries/<delivery_id>/redeliver")
@needs(Scope.WEBHOOKS_WRITE)
def redeliver(endpoint_id: str, delivery_id: str) -> AnyResponse:
    """Send a message once more."""
    state().webhooks.redeliver(project_id(), endpoint_id, delivery_id, once())
    flash("The message waits to be sent once more.")
    return _to(endpoint_id)


@webhooks.post("/webhooks/<endpoint_id>/delete")
@needs(Scope.WEBHOOKS_WRITE)
def delete(endpoint_id: str) -> AnyResponse:
    """Forget an endpoint and its messages."""
    state().webhooks.delete(project_id(), endpoint_id)
    flash("The endpoint and its messages are gone.")
    return redirect(url_for("webhooks.list_endpoints"), 303)


def _list(issued: IssuedEndpoint | None = None) -> str:
    query = parse(PageQuery, request.args.to_dict(), prefix="/query")
    page = state().webhooks.list(project_id(), query.limit, query.after)
    return render_template(
        "webhooks.html", page=page, after=query.after, issued=issued, events=get_args(HookedEvent),
        chosen=EndpointBody.model_fields["events"].default,
    )  # fmt: skip


def _one(endpoint_id: str, issued: IssuedEndpoint | None = None) -> str:
    query = parse(PageQuery, request.args.to_dict(), prefix="/query")
    endpoint = state().webhooks.get(project_id(), endpoint_id)
    page = state().webhooks.deliveries(project_id(), endpoint_id, query.limit, query.after)
    return render_template("webhook.html", endpoint=endpoint, page=page, after=query.after, issued=issued)


def _to(endpoint_id: str) -> AnyResponse:
    return redirect(url_for("webhooks.get_endpoint", endpoint_id=endpoint_id), 303)
