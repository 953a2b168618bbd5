"""The session of a browser: a signed cookie that names an API key. Nothing in it opens anything but this service.

The key is looked up at every request, so one that is revoked, that expires or that loses a scope takes the session
with it. The console begins and ends sessions; the API lets one read.
"""

import hmac
import secrets
import time
from hashlib import sha256

from flask import Flask, request, session
from flask.sessions import SecureCookieSessionInterface

from foundry.spec.access import ApiKey
from foundry.store.keys import read_or_make_secret
from foundry.store.settings import Settings

LIVES_S = 12 * 3600
"""From signing in to having to sign in again; use does not lengthen it."""
_PURPOSE = b"foundry console session"


class _CookieInterface(SecureCookieSessionInterface):
    """Flask's own signed cookie; Secure wherever the browser came by TLS, also when a proxy ended it."""

    salt = _PURPOSE.decode()
    digest_method = staticmethod(sha256)

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"


def install(app: Flask, settings: Settings) -> None:
    """Read and write sessions in this application; all of an installation share its secret."""
    app.secret_key = hmac.digest(read_or_make_secret(settings.home / "secret"), _PURPOSE, "sha256")
    app.session_interface = _CookieInterface()
    app.config.update(
        SESSION_COOKIE_NAME="foundry_session", SESSION_COOKIE_HTTPONLY=True, SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_PATH="/", SESSION_REFRESH_EACH_REQUEST=False,
    )  # fmt: skip


def begin(key: ApiKey) -> None:
    """A new session for this key; what the cookie held before is gone."""
    session.clear()
    session.update(key_id=key.id, began_at=time.time())


def end() -> None:
    """Forget the key in this browser."""
    session.clear()


def key_id() -> str | None:
    """The key of the running request's session; None without one, or when it has lived its time."""
    found, began_at = session.get("key_id"), session.get("began_at")
    if not isinstance(found, str) or not isinstance(began_at, int | float):
        return None
    return found if 0 <= time.time() - began_at < LIVES_S else None


def csrf_token() -> str:
    """A word that only our own pages know, made with the session."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(24)
    return str(session["csrf"])


def knows_csrf_token(given: str) -> bool:
    """Whether a request that changes something comes from one of our own pages."""
    return hmac.compare_digest(str(session.get("csrf", "")).encode(), given.encode()) and bool(given)
