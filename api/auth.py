"""Who is asking. Closed by default: what is not listed here needs a key."""

from flask import Flask, g, request

from api.state import state
from foundry.errors import Unauthorized

OPEN_ENDPOINTS = frozenset({"health.alive", "health.ready", "openapi.spec", "docs.page"})
"""A request that matches no route passes too: its 404 or 405 says nothing that /openapi.json does not."""


def install(app: Flask) -> None:
    """Ask for a key before every view."""
    app.before_request(_require_key)


def project_id() -> str:
    """The project of the key that the running request came with."""
    return str(g.project_id)


def _require_key() -> None:
    if request.endpoint is None or request.endpoint in OPEN_ENDPOINTS:
        return
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        raise Unauthorized("this needs an API key; send it as the header Authorization: Bearer fdy_...")
    g.project_id = state().keys.authenticate(given.token).project_id
