"""Who may do what, and what was done: scopes, roles, projects, members, keys, audit, usage and limits."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from foundry.spec.record import CreatedAt, Id, Record
from foundry.spec.resources import Resource


class Scope(StrEnum):
    """What a key may do. Writing includes no reading: give both where both are meant."""

    DATASETS_READ = "datasets:read"
    """Datasets and uploads."""
    DATASETS_WRITE = "datasets:write"
    """Upload and delete data, and files of models in parts."""
    MODELS_READ = "models:read"
    """Registered teachers and the families that can be cut."""
    MODELS_WRITE = "models:write"
    """Register and forget teachers."""
    TARGETS_READ = "targets:read"
    """Devices and formats."""
    TARGETS_WRITE = "targets:write"
    """Describe and forget devices of the project's own."""
    JOBS_READ = "jobs:read"
    """Jobs and evaluations: both are work for the same workers, under the same quota."""
    JOBS_WRITE = "jobs:write"
    """Submit, steer and delete jobs and evaluations."""
    VARIANTS_READ = "variants:read"
    """Variants with their files and measurements, and aliases."""
    VARIANTS_WRITE = "variants:write"
    """Delete variants, send measurements, move aliases."""
    WEBHOOKS_READ = "webhooks:read"
    """Endpoints and their deliveries."""
    WEBHOOKS_WRITE = "webhooks:write"
    """Make, change and test endpoints."""
    PROJECT_READ = "project:read"
    """Members, keys without their secrets, audit, usage and limits."""
    PROJECT_ADMIN = "project:admin"
    """Make and end keys and members of the project."""
    INSTALLATION = "installation:admin"
    """Make projects, set quotas, read the installation's metrics. For operators; no role has it."""


class Role(StrEnum):
    """What a member may do at most; a key of that member never reaches further."""

    VIEWER = "viewer"
    """Every scope that ends in `:read`."""
    EDITOR = "editor"
    """Every scope of a project but `project:admin`."""
    ADMIN = "admin"
    """Every scope of a project."""


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

    id: Id
    name: str
    """Once in an installation."""
    quota: Quota
    """What it may use at once; a field that is null is no limit."""
    created_at: CreatedAt


class Member(Resource):
    """A person or a service that acts for a project through keys of its own."""

    id: Id
    name: str
    """An address or a handle, once in a project."""
    role: Role
    """Bounds all keys of the member, from the next request on."""
    created_at: CreatedAt


class ApiKey(Resource):
    """A key, without its secret."""

    id: Id
    project_id: str
    """Whose objects the key sees, and no other."""
    name: str
    """For people, such as the program that uses it."""
    scopes: tuple[Scope, ...]
    """What the key may do now: its own scopes, within the role of its member."""
    member_id: str | None = None
    """Whose key it is; null for one that belongs to no member."""
    created_at: CreatedAt
    expires_at: datetime | None = None
    """From then on it is refused: as was asked when it was made, or the end of the grace of a rotation; null is
    never."""
    last_used_at: datetime | None = None
    """To the hour."""
    revoked_at: datetime | None = None
    """When it was revoked, by hand or with its member; null where it was not."""


class IssuedKey(ApiKey):
    """A key just made. `key` is shown this once; None when the same request made it before."""

    key: str | None = None
    """The secret, as it stands behind `Bearer`. Null for a repeated request: rotate the key to get another."""


class NewProject(Resource):
    """A project just made, with its first key."""

    project: Project
    """The tenant."""
    admin_key: IssuedKey
    """May do all that can be done in the project."""


class AuditEvent(Resource):
    """One write, recorded in the transaction that made it."""

    id: Id
    action: str
    """The resource and the verb, such as jobs.cancel."""
    object_id: str | None = None
    """The id or name of what was written; null where the request neither names nor makes one."""
    key_id: str
    """The key that the request came with."""
    member_id: str | None = None
    """Whose key that was; null for one that belongs to no member."""
    request_id: str
    """`X-Request-Id` of the answer; the logs have it too."""
    address: str | None = None
    """Where the request came from, as the server saw it."""
    created_at: CreatedAt


class Usage(Resource):
    """What a project used in a span of time, and what it holds now."""

    since: datetime
    """The first moment of the span."""
    until: datetime
    """The first moment after it."""
    jobs_submitted: int
    """In the span."""
    jobs_by_status: dict[str, int]
    """Of the jobs submitted in the span, where they stand now."""
    evaluations_submitted: int = 0
    """In the span."""
    run_seconds: float
    """Of attempts that began in the span; one that still runs counts up to now."""
    dataset_bytes: int
    """Held now by datasets."""
    model_bytes: int
    """Held now by models that were uploaded."""
    upload_bytes: int
    """Reserved by open uploads."""
    variant_bytes: int
    """Held now by all files of all variants."""

    @property
    def stored_bytes(self) -> int:
        """All that a quota of bytes counts."""
        return self.dataset_bytes + self.model_bytes + self.upload_bytes + self.variant_bytes


class Limits(Resource):
    """What the caller may use, and how much of it is used."""

    quota: Quota
    """What the operator allows the project."""
    active_jobs: int
    """Jobs and evaluations that have not ended."""
    stored_bytes: int
    """What the quota of the same name counts."""
    run_seconds_this_month: float
    """Of attempts that began in the running calendar month (UTC)."""
    requests_per_minute: int | None = None
    """For each key; None is no limit."""
    largest_upload_bytes: int
    """The largest file that the service takes."""
