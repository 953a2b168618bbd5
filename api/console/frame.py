"""What every page has: security headers, navigation, numbers as people read them, and words for what went wrong."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import structlog
from flask import Flask, Response, g, make_response, render_template, request
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

from api import sessions
from api.auth import caller
from api.console import assets
from api.errors import RETRY_AFTER_S, status_of
from api.trace import request_id
from foundry.errors import FoundryError, RateLimited
from foundry.spec import words
from foundry.spec.access import Scope
from foundry.spec.lifecycle import Status

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_log = structlog.get_logger()


class Place(NamedTuple):
    """One entry of the navigation."""

    endpoint: str
    label: str
    scope: Scope
    group: str


PLACES = (
    Place("overview.show", "Overview", Scope.JOBS_READ, "Work"),
    Place("jobs.list_jobs", "Jobs", Scope.JOBS_READ, "Work"),
    Place("variants.list_variants", "Variants", Scope.VARIANTS_READ, "Work"),
    Place("comparison.show", "Compare", Scope.VARIANTS_READ, "Work"),
    Place("evaluations.list_evaluations", "Evaluations", Scope.JOBS_READ, "Work"),
    Place("datasets.list_datasets", "Datasets", Scope.DATASETS_READ, "Library"),
    Place("models.list_models", "Models", Scope.MODELS_READ, "Library"),
    Place("targets.list_targets", "Targets", Scope.TARGETS_READ, "Library"),
    Place("webhooks.list_endpoints", "Webhooks", Scope.WEBHOOKS_READ, "Project"),
    Place("access.list_keys", "Keys", Scope.PROJECT_READ, "Project"),
    Place("access.list_members", "Members", Scope.PROJECT_READ, "Project"),
    Place("access.list_audit_events", "Audit", Scope.PROJECT_READ, "Project"),
    Place("access.get_usage", "Usage", Scope.PROJECT_READ, "Project"),
)


class Refusal(NamedTuple):
    """Why a form came back."""

    message: str
    problems: dict[str, str]
    """By the name of the field: the pointer with dots, `distill.tokens`."""

    def of(self, name: str) -> str:
        """What is wrong with a field, or with something inside it."""
        return "; ".join(text for at, text in self.problems.items() if at == name or at.startswith(f"{name}."))


def install(app: Flask) -> None:
    """Headers, template words and error pages."""
    app.after_request(_protect)
    app.context_processor(_words)
    for function in (words.number, words.size, words.share, words.decimals, words.signed, words.duration, words.spread):
        app.jinja_env.filters[function.__name__] = function
    app.jinja_env.filters["moment"] = moment
    app.register_error_handler(FoundryError, _foundry_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def is_fragment() -> bool:
    """Whether a script of ours asks for a part of a page."""
    return "X-Fragment" in request.headers


def refused(error: FoundryError, page: Callable[[], str], status: int | None = None) -> tuple[str, int]:
    """The form once more, with what was given and what is wrong with it; raises what is not the reader's to mend."""
    found = status or status_of(error)
    if found is None or found >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise error
    problems = {p.pointer.strip("/").replace("/", "."): p.detail for p in error.problems}
    g.refusal = Refusal(error.message, problems)
    return page(), int(found)


def moment(at: datetime) -> Markup:
    """A time: UTC for who reads without scripts; a script says it in the reader's zone."""
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), f"{utc:%d %b %Y, %H:%M} UTC"
    )


def _words() -> dict[str, Any]:
    """What templates may use."""
    key = g.get("key")
    refusal = g.get("refusal")
    places: dict[str, list[Place]] = {}
    for place in PLACES:
        if key is not None and place.scope in key.scopes:
            places.setdefault(place.group, []).append(place)

    def given(name: str, otherwise: object = "") -> object:
        return request.form.get(name, "") if refusal is not None else otherwise

    def given_all(name: str, otherwise: object = ()) -> object:
        return request.form.getlist(name) if refusal is not None else otherwise

    return {
        "asset": assets.address_of, "places": places, "key": key, "refusal": refusal, "given": given,
        "given_all": given_all, "csrf_token": sessions.csrf_token, "Scope": Scope, "Status": Status,
        "can": lambda scope: key is not None and scope in caller().scopes,
        "new_once": lambda: f"console-{secrets.token_urlsafe(16)}",
    }  # fmt: skip


def _protect(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["X-Frame-Options"] = "DENY"
    return response


def _foundry_error(error: FoundryError) -> Any:
    status = status_of(error)
    if status is None:
        return _unexpected(error)
    answer = _answer(status, (type(error).__doc__ or "").splitlines()[0], error.message)
    if isinstance(error, RateLimited):
        answer.headers["Retry-After"] = str(error.retry_after_s)
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        _log.error("unavailable", error=error.message)
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


def _http_error(error: HTTPException) -> Response:
    if error.code is None or error.code < 400:
        return make_response(error.get_response())
    status = HTTPStatus(error.code)
    if status is HTTPStatus.NOT_FOUND and request.url_rule is None:
        return _answer(status, "There is no such page", f"Nothing is at {request.path:.200}.")
    return _answer(status, status.phrase, error.description or error.name)


def _unexpected(error: Exception) -> Response:
    _log.error("unexpected", exc_info=error)
    return _answer(
        HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed",
        f"This was not your mistake. The service's log has the reason under the request id {request_id()}.",
    )  # fmt: skip


def _answer(status: HTTPStatus, title: str, message: str) -> Response:
    template = "fragments/problem.html" if is_fragment() else "problem.html"
    return Response(render_template(template, title=title, message=message, status=status), status)
