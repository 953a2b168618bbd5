"""Who may do what, and what was done: scopes, roles, projects, members, keys, audit, usage and limits."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from foundry.spec.record import Record
from foundry.spec.resources import Resource


class Scope(StrEnum):
    """What a key may do. Writing includes no reading: give both where both are meant."""

    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    TARGETS_READ = "targets:read"
    TARGETS_WRITE = "targets:write"
    JOBS_READ = "jobs:read"
    """Jobs and evaluations: both are work for the same workers, under the same quota."""
    JOBS_WRITE = "jobs:write"
    VARIANTS_READ = "variants:read"
    VARIANTS_WRITE = "variants:write"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    PROJECT_READ = "project:read"
    """Members, keys without their secrets, audit, usage and limits."""
    PROJECT_ADMIN = "project:admin"
    """Make and end keys and members of the project."""
    INSTALLATION = "installation:admin"
    """Make projects, set quotas, read the installation's metrics. For operators; no role has it."""


class Role(StrEnum):
    """What a member may do at most; a key of that member never reaches further."""

    VIEWER = "viewer"
    EDITOR = "editor"
    ADMIN = "admin"


PROJECT_SCOPES = frozenset(Scope) - {Scope.INSTALLATION}
ROLE_SCOPES: Mapping[Role, frozenset[Scope]] = MappingProxyType(
    {
        Role.VIEWER: frozenset(scope for scope in PROJECT_SCOPES if scope.value.endswith(":read")),
        Role.EDITOR: PROJECT_SCOPES - {Scope.PROJECT_ADMIN},
        Role.ADMIN: PROJECT_SCOPES,
    }
)


class Quota(Record):
    """What a project may use at once. None is no limit."""

    active_jobs: Annotated[int, Field(ge=0)] | None = None
    """Jobs and evaluations that have not ended."""
    running_jobs: Annotated[int, Field(ge=0)] | None = None
    """Jobs and evaluations that workers carry out at the same time; further ones wait in the queue."""
    stored_bytes: Annotated[int, Field(ge=0)] | None = None
    """Datasets, models, open uploads and variants, each counted whole even where two hold the same bytes."""
    run_seconds_per_month: Annotated[int, Field(ge=0)] | None = None
    """Seconds of attempts that began in the running calendar month (UTC)."""


class Project(Resource):
    """A tenant: nothing of it is seen from another."""

    id: str
    name: str
    quota: Quota
    created_at: datetime


class Member(Resource):
    """A person or a service that acts for a project through keys of its own."""

    id: str
    name: str
    """An address or a handle, once in a project."""
    role: Role
    created_at: datetime


class ApiKey(Resource):
    """A key, without its secret."""

    id: str
    project_id: str
    name: str
    scopes: tuple[Scope, ...]
    """What the key may do now: its own scopes, within the role of its member."""
    member_id: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the hour."""
    revoked_at: datetime | None = None


class IssuedKey(ApiKey):
    """A key just made. `key` is shown this once; None when the same request made it before."""

    key: str | None = None


class NewProject(Resource):
    """A project just made, with its first key."""

    project: Project
    admin_key: IssuedKey


class AuditEvent(Resource):
    """One write, recorded in the transaction that made it."""

    id: str
    action: str
    """The resource and the verb, such as jobs.cancel."""
    object_id: str | None = None
    key_id: str
    member_id: str | None = None
    request_id: str
    address: str | None = None
    """Where the request came from, as the server saw it."""
    created_at: datetime


class Usage(Resource):
    """What a project used in a span of time, and what it holds now."""

    since: datetime
    until: datetime
    jobs_submitted: int
    jobs_by_status: dict[str, int]
    """Of the jobs submitted in the span, where they stand now."""
    evaluations_submitted: int = 0
    run_seconds: float
    """Of attempts that began in the span; one that still runs counts up to now."""
    dataset_bytes: int
    model_bytes: int
    upload_bytes: int
    """Reserved by open uploads."""
    variant_bytes: int

    @property
    def stored_bytes(self) -> int:
        """All that a quota of bytes counts."""
        return self.dataset_bytes + self.model_bytes + self.upload_bytes + self.variant_bytes


class Limits(Resource):
    """What the caller may use, and how much of it is used."""

    quota: Quota
    active_jobs: int
    stored_bytes: int
    run_seconds_this_month: float
    requests_per_minute: int | None = None
    """For each key; None is no limit."""
    largest_upload_bytes: int
