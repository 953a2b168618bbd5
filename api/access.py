"""/v1/projects, members, api_keys, audit_events, usage, limits: who may do what, and what was done."""

from datetime import datetime
from typing import Annotated

from apiflask import APIBlueprint
from pydantic import AwareDatetime, Field

from api.auth import caller, needs, project_id, require_within
from api.idempotency import CreateHeaders, idempotency
from api.pages import PageQuery
from api.records import Body, Input
from api.state import state
from foundry.errors import FieldProblem, InvalidSpec, NotFound
from foundry.spec.access import (
    ROLE_SCOPES,
    ApiKey,
    AuditEvent,
    IssuedKey,
    Limits,
    Member,
    NewProject,
    Project,
    Quota,
    Role,
    Scope,
    Usage,
)
from foundry.spec.resources import Page
from foundry.store.records import Idempotency

access = APIBlueprint("access", __name__)
Label = Annotated[str, Field(min_length=1, max_length=200)]
_YEAR_S = 366 * 24 * 3600


class ProjectBody(Body):
    """A new tenant."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    """1 to 64 of a-z, 0-9, dot, dash and underscore; once in an installation."""
    quota: Quota = Quota()
    """Without it there is no limit."""


class QuotaBody(Body):
    """What the project may use from now on; limits left out stay as they are, and null is no limit."""

    quota: Quota
    """The limits to set."""


class MemberBody(Body):
    """A person or a service that is to have keys of its own."""

    name: Label
    """An address or a handle, once in a project."""
    role: Role
    """How far the member's keys reach at most; not further than the caller's own."""


class RoleBody(Body):
    """What the member may do from now on."""

    role: Role
    """Not further than the caller's own key reaches."""


class KeyBody(Body):
    """A new key. Without `scopes` it may do what its member's role, or else the caller's key, may do."""

    name: Label
    """For people, such as the program that uses it."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] | None = None
    """Not beyond the caller's own; null takes those of the caller but for `installation:admin`. The role of a member
    bounds either."""
    member_id: str | None = None
    """Whose key it is to be; null for a key that belongs to no member."""
    lives_s: Annotated[float, Field(gt=0, le=10 * _YEAR_S)] | None = None
    """Seconds until it ends by itself; None lives until it is revoked."""


class RotateBody(Body):
    """How the old key ends."""

    grace_s: Annotated[float, Field(ge=0, le=30 * 24 * 3600)] = 3600
    """Seconds that the old key still works."""


class AuditQuery(PageQuery):
    """A page of the audit, of one object or of all."""

    object_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Only what was done to this object."""


class UsageQuery(Input):
    """A span of time; by default the running calendar month (UTC) up to now."""

    since: AwareDatetime | None = None
    """Its first moment, RFC 3339."""
    until: AwareDatetime | None = None
    """The first moment after it, RFC 3339."""


@access.get("/whoami")
@needs(None)
@access.output(ApiKey)
def whoami() -> ApiKey:
    """The key that this request came with, with its project and scopes."""
    return caller()


@access.post("/projects")
@needs(Scope.INSTALLATION)
@access.input(ProjectBody)
@access.input(CreateHeaders, location="headers")
@access.output(NewProject, 201)
@access.doc(responses=[400, 409, 415])
def create_project(json_data: ProjectBody, headers_data: CreateHeaders) -> NewProject:
    """Make a tenant; the answer carries its first key, this once."""
    once = idempotency(headers_data, json_data.model_dump_json())
    project, key = state().projects.create(project_id(), json_data.name, json_data.quota, once)
    return NewProject(project=project, admin_key=key)


@access.get("/projects")
@needs(Scope.PROJECT_READ)
@access.input(PageQuery, location="query")
@access.output(Page[Project])
def list_projects(query_data: PageQuery) -> Page[Project]:
    """The caller's project; every project for who administers the installation."""
    only = None if Scope.INSTALLATION in caller().scopes else project_id()
    return state().projects.list(query_data.limit, query_data.after, only)


@access.get("/projects/<project>")
@needs(Scope.PROJECT_READ)
@access.output(Project)
def get_project(project: str) -> Project:
    """One project."""
    if project != project_id() and Scope.INSTALLATION not in caller().scopes:
        raise NotFound(f"no project {project!r}")
    return state().projects.get(project)


@access.patch("/projects/<project>")
@needs(Scope.INSTALLATION)
@access.input(QuotaBody)
@access.output(Project)
@access.doc(responses=[400, 415])
def set_quota(project: str, json_data: QuotaBody) -> Project:
    """Set the limits that are given, and no other; what goes beyond them already stays."""
    return state().projects.set_quota(project, json_data.quota)


@access.post("/members")
@needs(Scope.PROJECT_ADMIN)
@access.input(MemberBody)
@access.input(CreateHeaders, location="headers")
@access.output(Member, 201)
@access.doc(responses=[400, 409, 415])
def create_member(json_data: MemberBody, headers_data: CreateHeaders) -> Member:
    """Add a member; keys of theirs are made with `member_id`."""
    return add_member(json_data, idempotency(headers_data, json_data.model_dump_json()))


def add_member(body: MemberBody, once: Idempotency | None) -> Member:
    """A member of the caller's project; raise `Forbidden` for a role that reaches further than the caller."""
    require_within(ROLE_SCOPES[body.role], f"the role {body.role}")
    return state().members.create(project_id(), body.name, body.role, once)


@access.get("/members")
@needs(Scope.PROJECT_READ)
@access.input(PageQuery, location="query")
@access.output(Page[Member])
def list_members(query_data: PageQuery) -> Page[Member]:
    """The project's members, newest first."""
    return state().members.list(project_id(), query_data.limit, query_data.after)


@access.get("/members/<member_id>")
@needs(Scope.PROJECT_READ)
@access.output(Member)
def get_member(member_id: str) -> Member:
    """One member."""
    return state().members.get(project_id(), member_id)


@access.patch("/members/<member_id>")
@needs(Scope.PROJECT_ADMIN)
@access.input(RoleBody)
@access.output(Member)
@access.doc(responses=[400, 415])
def set_role(member_id: str, json_data: RoleBody) -> Member:
    """Give a member another role; their keys follow from the next request on."""
    return give_role(member_id, json_data)


def give_role(member_id: str, body: RoleBody) -> Member:
    """Another role for a member; raise `Forbidden` for one that reaches further than the caller."""
    require_within(ROLE_SCOPES[body.role], f"the role {body.role}")
    return state().members.set_role(project_id(), member_id, body.role)


@access.delete("/members/<member_id>")
@needs(Scope.PROJECT_ADMIN)
@access.output({}, 204)
def remove_member(member_id: str) -> str:
    """Take a member out and revoke all their keys."""
    state().members.remove(project_id(), member_id)
    return ""


@access.post("/api_keys")
@needs(Scope.PROJECT_ADMIN)
@access.input(KeyBody)
@access.input(CreateHeaders, location="headers")
@access.output(IssuedKey, 201)
@access.doc(responses=[400, 415])
def create_key(json_data: KeyBody, headers_data: CreateHeaders) -> IssuedKey:
    """Make a key; the answer carries it, this once."""
    return issue_key(json_data, idempotency(headers_data, json_data.model_dump_json()))


def issue_key(body: KeyBody, once: Idempotency | None) -> IssuedKey:
    """A new key of the caller's project; raise `Forbidden` for scopes that the caller does not have."""
    scopes = body.scopes or tuple(scope for scope in caller().scopes if scope is not Scope.INSTALLATION)
    require_within(scopes, "the new key")
    key, plaintext = state().keys.create(
        project_id(), body.name, scopes, member_id=body.member_id, lives_s=body.lives_s, idempotency=once
    )
    return IssuedKey(**key.model_dump(), key=plaintext or None)


@access.get("/api_keys")
@needs(Scope.PROJECT_READ)
@access.input(PageQuery, location="query")
@access.output(Page[ApiKey])
def list_keys(query_data: PageQuery) -> Page[ApiKey]:
    """The project's keys without their secrets, newest first; those that have ended too."""
    return state().keys.list(project_id(), query_data.limit, query_data.after)


@access.get("/api_keys/<key_id>")
@needs(Scope.PROJECT_READ)
@access.output(ApiKey)
def get_key(key_id: str) -> ApiKey:
    """One key without its secret."""
    return state().keys.get(project_id(), key_id)


@access.post("/api_keys/<key_id>/rotate")
@needs(Scope.PROJECT_ADMIN)
@access.input(RotateBody)
@access.input(CreateHeaders, location="headers")
@access.output(IssuedKey, 201)
@access.doc(responses=[400, 409, 415])
def rotate_key(key_id: str, json_data: RotateBody, headers_data: CreateHeaders) -> IssuedKey:
    """Make a key that may do the same, and let the old one end after a grace."""
    return renew_key(key_id, json_data, idempotency(headers_data, json_data.model_dump_json()))


def renew_key(key_id: str, body: RotateBody, once: Idempotency | None) -> IssuedKey:
    """A key that may do the same; raise `Forbidden` when the old one reaches further than the caller."""
    require_within(state().keys.get(project_id(), key_id).scopes, "the new key")
    return state().keys.rotate(project_id(), key_id, body.grace_s, once)


@access.delete("/api_keys/<key_id>")
@needs(Scope.PROJECT_ADMIN)
@access.output({}, 204)
def revoke_key(key_id: str) -> str:
    """Refuse a key from now on."""
    state().keys.revoke(project_id(), key_id)
    return ""


@access.get("/audit_events")
@needs(Scope.PROJECT_READ)
@access.input(AuditQuery, location="query")
@access.output(Page[AuditEvent])
def list_audit_events(query_data: AuditQuery) -> Page[AuditEvent]:
    """Every write by a key of the project, newest first."""
    return state().projects.audit(project_id(), query_data.limit, query_data.after, query_data.object_id)


@access.get("/usage")
@needs(Scope.PROJECT_READ)
@access.input(UsageQuery, location="query")
@access.output(Usage)
def get_usage(query_data: UsageQuery) -> Usage:
    """Jobs and run seconds of a span of time, and the bytes that are stored now."""
    since, until = query_data.since, query_data.until
    if since is not None and (until or datetime.now(since.tzinfo)) < since:
        detail = "the span ends before it begins"
        raise InvalidSpec([FieldProblem(pointer="/query/since", code="value_error", detail=detail)])
    return state().usage.usage(project_id(), since, until)


@access.get("/limits")
@needs(Scope.PROJECT_READ)
@access.output(Limits)
def get_limits() -> Limits:
    """What the project may use, and how much of it is used."""
    return state().usage.limits(project_id())
