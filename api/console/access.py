"""Keys, members, audit and usage: who may do what, what was done, and what it took."""

from datetime import UTC, datetime
from typing import Annotated

from flask import Blueprint, flash, redirect, render_template, request, url_for
from pydantic import Field
from werkzeug.wrappers import Response as AnyResponse

from api.access import (
    AuditQuery,
    KeyBody,
    MemberBody,
    RoleBody,
    RotateBody,
    add_member,
    give_role,
    issue_key,
    renew_key,
)
from api.auth import needs, project_id
from api.console.forms import document, once
from api.console.frame import refused
from api.pages import PageQuery
from api.records import Input
from api.state import state
from foundry.errors import FoundryError
from foundry.spec.access import IssuedKey, Role, Scope
from foundry.spec.record import parse

access = Blueprint("access", __name__)
_MEMBERS = 100
_DAY_S = 24 * 3600


class _Days(Input):
    """How people say how long a key lives."""

    lives_days: Annotated[float, Field(gt=0, le=3650)] | None = None


@access.get("/keys")
@needs(Scope.PROJECT_READ)
def list_keys() -> str:
    """The project's keys without their secrets, and the form that makes one."""
    return _keys()


@access.post("/keys")
@needs(Scope.PROJECT_ADMIN)
def create_key() -> str | tuple[str, int]:
    """Make a key and show it, this once."""
    fields = document(request.form, lists={"scopes"})
    try:
        days = parse(_Days, {name: fields.pop(name) for name in ("lives_days",) if name in fields}).lives_days
        body = parse(KeyBody, fields | ({"lives_s": days * _DAY_S} if days is not None else {}))
        issued = issue_key(body, once(body.model_dump_json()))
    except FoundryError as error:
        return refused(error, _keys)
    return _keys(issued), 201


@access.post("/keys/<key_id>/rotate")
@needs(Scope.PROJECT_ADMIN)
def rotate_key(key_id: str) -> tuple[str, int]:
    """Make a key that may do the same and show it, this once."""
    body = RotateBody()
    return _keys(renew_key(key_id, body, once(body.model_dump_json()))), 201


@access.post("/keys/<key_id>/revoke")
@needs(Scope.PROJECT_ADMIN)
def revoke_key(key_id: str) -> AnyResponse:
    """Refuse a key from now on."""
    state().keys.revoke(project_id(), key_id)
    flash("The key is revoked.")
    return redirect(url_for("access.list_keys"), 303)


@access.get("/members")
@needs(Scope.PROJECT_READ)
def list_members() -> str:
    """The project's members, and the form that adds one."""
    return _members()


@access.post("/members")
@needs(Scope.PROJECT_ADMIN)
def create_member() -> AnyResponse | tuple[str, int]:
    """Add a member."""
    try:
        body = parse(MemberBody, document(request.form))
        member = add_member(body, once(body.model_dump_json()))
    except FoundryError as error:
        return refused(error, _members)
    flash(f"{member.name} is a member now. Make a key for them next.")
    return redirect(url_for("access.list_members"), 303)


@access.post("/members/<member_id>/role")
@needs(Scope.PROJECT_ADMIN)
def set_role(member_id: str) -> AnyResponse:
    """Give a member another role."""
    member = give_role(member_id, parse(RoleBody, document(request.form)))
    flash(f"{member.name} is {member.role} now.")
    return redirect(url_for("access.list_members"), 303)


@access.post("/members/<member_id>/remove")
@needs(Scope.PROJECT_ADMIN)
def remove_member(member_id: str) -> AnyResponse:
    """Take a member out and revoke all their keys."""
    state().members.remove(project_id(), member_id)
    flash("The member is out, and their keys are revoked.")
    return redirect(url_for("access.list_members"), 303)


@access.get("/audit")
@needs(Scope.PROJECT_READ)
def list_audit_events() -> str:
    """Every write by a key of the project, newest first."""
    given = {name: value for name, value in request.args.items() if value}
    query = parse(AuditQuery, {"limit": 50} | given, prefix="/query")
    page = state().projects.audit(project_id(), query.limit, query.after, query.object_id)
    return render_template("audit.html", page=page, after=query.after, object_id=query.object_id)


@access.get("/usage")
@needs(Scope.PROJECT_READ)
def get_usage() -> str:
    """What the project used this month, what it holds, and what it may."""
    memory, project = state(), project_id()
    return render_template(
        "usage.html", usage=memory.usage.usage(project), limits=memory.usage.limits(project),
        cost_per_hour=memory.settings.cost_per_hour, currency=memory.settings.currency,
    )  # fmt: skip


def _keys(issued: IssuedKey | None = None) -> str:
    query = parse(PageQuery, request.args.to_dict(), prefix="/query")
    memory, project = state(), project_id()
    members = memory.members.list(project, _MEMBERS).data
    return render_template(
        "keys.html", page=memory.keys.list(project, query.limit, query.after), after=query.after, issued=issued,
        members=[("", "the project's"), *((one.id, one.name) for one in members)], scopes=tuple(Scope),
        now=datetime.now(UTC),
    )  # fmt: skip


def _members() -> str:
    query = parse(PageQuery, request.args.to_dict(), prefix="/query")
    page = state().members.list(project_id(), query.limit, query.after)
    return render_template("members.html", page=page, after=query.after, roles=tuple(Role))
