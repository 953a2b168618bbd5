"""Who comes in: signing in with a key, signing out, and what every other request has to show."""

from flask import Blueprint, Flask, Response, g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api import sessions
from api.auth import READS, act_as, forget
from api.console.frame import is_fragment, refused
from api.state import state
from foundry.errors import FieldProblem, Forbidden, InvalidSpec, Unauthorized

session = Blueprint("session", __name__)
OPEN = frozenset({"session.show", "session.enter", "session.leave", "assets.send"})
"""What anyone may ask for."""
_MOST_KEY_CHARACTERS = 200


def install(app: Flask) -> None:
    """Ask for a session before every view."""
    app.before_request(_require_session)
    app.teardown_request(forget)
    app.register_error_handler(Unauthorized, _ask_to_sign_in)


def require_own_page() -> None:
    """Before every change, ask for the word that only our own pages know; raise `Forbidden` without it."""
    if request.method in READS or request.endpoint is None:
        return
    if not sessions.knows_csrf_token(request.headers.get("X-CSRF-Token") or request.form.get("csrf", "")):
        raise Forbidden(
            "this form is from another session or another site, so nothing was changed. Open its page again and send "
            "it from there"
        )


@session.get("/sign-in")
def show() -> str:
    """Ask for a key."""
    return _page()


@session.post("/sign-in")
def enter() -> AnyResponse | tuple[str, int]:
    """Begin a session with a good key, and go on to where the reader wanted to be."""
    given = request.form.get("key", "").strip()
    try:
        key = state().keys.authenticate(given[:_MOST_KEY_CHARACTERS])
    except Unauthorized as error:
        detail = "this key is wrong, expired or revoked" if given else "give a key"
        problem = FieldProblem(pointer="/key", code=error.code, detail=detail)
        return refused(InvalidSpec([problem]), _page, status=401)
    sessions.begin(key)
    return redirect(_inside(request.form.get("then", "")), 303)


@session.post("/sign-out")
def leave() -> AnyResponse:
    """End the session in this browser."""
    sessions.end()
    return redirect(url_for("session.show"), 303)


def _ask_to_sign_in(error: Unauthorized) -> AnyResponse | tuple[str, int]:
    """What a request without a session gets: the door; a script or a form that changes something, a word."""
    if is_fragment():
        return render_template("fragments/signed_out.html"), 401
    if request.method not in READS:
        return render_template("signed_out.html", message=error.message), 401
    then = request.full_path.rstrip("?") if request.path != "/" else None
    return redirect(url_for("session.show", then=then), 303)


def _page() -> str:
    then = request.values.get("then", "")
    return render_template("sign_in.html", then=then if _inside(then) == then else "")


def _inside(address: str) -> str:
    """An address of ours, never another site's: browsers read `//x` and `/\\x` as hosts."""
    is_ours = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if is_ours else url_for("overview.show")


def _require_session() -> Response | None:
    if request.endpoint is None or request.endpoint in OPEN:
        return None
    key_id = sessions.key_id()
    if key_id is None:
        raise Unauthorized("sign in first")
    act_as(state().keys.recall(key_id))
    g.by_session = True
    return None
