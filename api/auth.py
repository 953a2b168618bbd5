"""Who is asking, and how far the key reaches. Closed by default: a view without `needs` stops the app from starting."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from flask import Flask, Response, current_app, g, request

from api import sessions
from api.state import state
from api.trace import request_id
from foundry.errors import Forbidden, Unauthorized
from foundry.spec.access import ApiKey, Scope
from foundry.store.audit import Actor, acting

OPEN_ENDPOINTS = frozenset({"health.alive", "health.ready", "openapi.spec", "docs.page"})
"""A request that matches no route passes too: its 404 or 405 says nothing that /openapi.json does not."""
READS = frozenset({"GET", "HEAD", "OPTIONS"})
_NAME = "needs_scope"
View = TypeVar("View", bound=Callable[..., Any])


def needs(scope: Scope | None) -> Callable[[View], View]:
    """Which scope a view asks for; None for one that any good key may see."""

    def mark(view: View) -> View:
        setattr(view, _NAME, scope)
        return view

    return mark


def install(app: Flask) -> None:
    """Ask for a key before every view."""
    app.before_request(_require_key)
    app.after_request(_confine)
    app.teardown_request(forget)


def require_marks(app: Flask, open_endpoints: Collection[str] = OPEN_ENDPOINTS) -> None:
    """Raise `AssertionError` for a view that does not say what it needs; called when all views are registered."""
    closed = {name: view for name, view in app.view_functions.items() if name not in open_endpoints}
    unmarked = [name for name, view in closed.items() if not hasattr(view, _NAME)]
    assert not unmarked, f"these views lack @needs(scope): {', '.join(unmarked)}"


def scope_of(view: Callable[..., Any]) -> Scope | None:
    """What `needs` said of a view."""
    scope: Scope | None = getattr(view, _NAME)
    return scope


def project_id() -> str:
    """The project of the key that the running request came with."""
    return caller().project_id


def caller() -> ApiKey:
    """The key that the running request came with."""
    key: ApiKey = g.key
    return key


def require_within(wanted: Collection[Scope], what: str) -> None:
    """Nobody hands out more than they have: raise `Forbidden` when `wanted` reaches further than the caller."""
    if beyond := sorted(set(wanted) - set(caller().scopes)):
        raise Forbidden(f"{what} would reach further than your own key: {', '.join(beyond)}")


def act_as(key: ApiKey) -> None:
    """Let the running request be one of this key; raise `Forbidden` when its view asks for a scope that it lacks."""
    g.key = key
    scope = scope_of(current_app.view_functions[request.endpoint or ""])
    if scope is not None and scope not in key.scopes:
        raise Forbidden(
            f"this needs the scope {scope.value}; your key {key.id} has {', '.join(key.scopes) or 'none'}. "
            "Ask an admin of the project for a key with it"
        )
    if request.method not in READS:
        named = next(iter((request.view_args or {}).values()), None)
        g.actor = acting.set(
            Actor(
                project_id=key.project_id, key_id=key.id, member_id=key.member_id, request_id=request_id(),
                address=request.remote_addr, action=request.endpoint or "", object_id=named,
            )
        )  # fmt: skip


def forget(_: BaseException | None) -> None:
    """At the end of a request: whoever acted in it acts no longer."""
    if (token := g.pop("actor", None)) is not None:
        acting.reset(token)


def _require_key() -> None:
    if request.endpoint is None or request.endpoint in OPEN_ENDPOINTS:
        return
    given = request.authorization
    if given is None and request.method in READS and (key_id := sessions.key_id()) is not None:
        g.by_session = True  # a browser that the console let in may read, and only read
        act_as(state().keys.recall(key_id))
        return
    if given is None or given.type != "bearer" or not given.token:
        raise Unauthorized("this needs an API key; send it as the header Authorization: Bearer fdy_...")
    act_as(state().keys.authenticate(given.token))


def _confine(response: Response) -> Response:
    """What a browser shows of the API itself, such as a report, runs nothing and asks nobody."""
    if g.get("by_session"):
        response.headers.setdefault(
            "Content-Security-Policy", "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        )
    return response
