"""`foundry.keys`, `.members`, `.projects`, `.account`: who may do what, and what was done."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from foundry.client import resource
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, listing, verb
from foundry.client.pages import every
from foundry.spec.access import ApiKey, AuditEvent, IssuedKey, Limits, Member, NewProject, Project, Quota, Role, Usage

_KEYS, _MEMBERS, _PROJECTS = "/v1/api_keys", "/v1/members", "/v1/projects"


class Keys(Resource[T]):
    """API keys of the key's project."""

    @verb
    def create(
        self, name: str, *, scopes: Iterable[str] | None = None, member_id: str | None = None,
        lives_s: float | None = None, idempotency_key: str | None = None,
    ) -> Flow[IssuedKey]:  # fmt: skip
        """Make a key; `key` of the answer is shown this once. Without `scopes` it may do what yours may."""
        given = {"scopes": None if scopes is None else list(scopes), "member_id": member_id, "lives_s": lives_s}
        body: dict[str, Any] = {"name": name} | {key: value for key, value in given.items() if value is not None}
        return (yield from resource.create(self._transport, IssuedKey, _KEYS, body, idempotency_key))

    @verb
    def get(self, key_id: str) -> Flow[ApiKey]:
        """One key without its secret; raises `NotFound`."""
        return (yield from resource.get(self._transport, ApiKey, _KEYS, key_id))

    @listing
    def list(self, *, limit: int | None = None) -> Items[ApiKey]:
        """Every key, newest first; those that have ended too."""
        return every(self._transport, _KEYS, ApiKey, limit=limit)

    @verb
    def rotate(self, key_id: str, *, grace_s: float = 3600, idempotency_key: str | None = None) -> Flow[IssuedKey]:
        """A new key that may do the same; the old one ends after `grace_s` seconds."""
        path = below(_KEYS, key_id, "rotate")
        return (yield from resource.create(self._transport, IssuedKey, path, {"grace_s": grace_s}, idempotency_key))

    @verb
    def revoke(self, key_id: str) -> Flow[None]:
        """Refuse a key from now on."""
        yield from resource.delete(self._transport, below(_KEYS, key_id))


class Members(Resource[T]):
    """Members of the key's project."""

    @verb
    def create(self, name: str, role: Role | str, *, idempotency_key: str | None = None) -> Flow[Member]:
        """Add a member; keys of theirs are made with `keys.create(member_id=...)`."""
        body = {"name": name, "role": str(role)}
        return (yield from resource.create(self._transport, Member, _MEMBERS, body, idempotency_key))

    @verb
    def get(self, member_id: str) -> Flow[Member]:
        """One member; raises `NotFound`."""
        return (yield from resource.get(self._transport, Member, _MEMBERS, member_id))

    @listing
    def list(self, *, limit: int | None = None) -> Items[Member]:
        """Every member, newest first."""
        return every(self._transport, _MEMBERS, Member, limit=limit)

    @verb
    def set_role(self, member_id: str, role: Role | str) -> Flow[Member]:
        """Give a member another role; their keys follow at once."""
        body = {"role": str(role)}
        return (yield from resource.change(self._transport, Member, "PATCH", below(_MEMBERS, member_id), body))

    @verb
    def remove(self, member_id: str) -> Flow[None]:
        """Take a member out and revoke all their keys."""
        yield from resource.delete(self._transport, below(_MEMBERS, member_id))


class Projects(Resource[T]):
    """Projects. All but looking at one's own needs the scope installation:admin."""

    @verb
    def create(self, name: str, quota: Quota | None = None, *, idempotency_key: str | None = None) -> Flow[NewProject]:
        """Make a tenant; the answer carries its first key, this once."""
        body = {"name": name, "quota": (quota or Quota()).model_dump()}
        return (yield from resource.create(self._transport, NewProject, _PROJECTS, body, idempotency_key))

    @verb
    def get(self, project_id: str) -> Flow[Project]:
        """One project; raises `NotFound`."""
        return (yield from resource.get(self._transport, Project, _PROJECTS, project_id))

    @listing
    def list(self, *, limit: int | None = None) -> Items[Project]:
        """The key's project, or every project for who administers the installation."""
        return every(self._transport, _PROJECTS, Project, limit=limit)

    @verb
    def set_quota(self, project_id: str, quota: Quota) -> Flow[Project]:
        """Set the limits that `quota` is made with, None for no limit; the others stay as they are."""
        path, body = below(_PROJECTS, project_id), {"quota": quota.model_dump(exclude_unset=True)}
        return (yield from resource.change(self._transport, Project, "PATCH", path, body))


class Account(Resource[T]):
    """What concerns the caller: the key itself, and what its project uses."""

    @verb
    def whoami(self) -> Flow[ApiKey]:
        """The key in use, with its project and scopes."""
        return (yield from resource.get(self._transport, ApiKey, "/v1/whoami"))

    @verb
    def usage(self, since: datetime | None = None, until: datetime | None = None) -> Flow[Usage]:
        """Jobs and run seconds of a span of time, by default this month; and the bytes that are stored now."""
        query = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        return (yield from resource.get(self._transport, Usage, "/v1/usage", **query))

    @verb
    def limits(self) -> Flow[Limits]:
        """What the project may use, and how much of it is used."""
        return (yield from resource.get(self._transport, Limits, "/v1/limits"))

    @listing
    def audit(self, *, object_id: str | None = None, limit: int | None = None) -> Items[AuditEvent]:
        """Every write by a key of the project, newest first; of one object or of all."""
        return every(self._transport, "/v1/audit_events", AuditEvent, limit=limit, object_id=object_id)
