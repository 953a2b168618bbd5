"""Every answer that is not a success has one shape: a problem document (RFC 9457, application/problem+json)."""

import json
from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, make_response, request
from pydantic import BaseModel
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.exceptions import NotFound as NoRoute

from api.trace import request_id
from foundry.errors import (
    BudgetUnreachable,
    DatabaseUnavailable,
    Forbidden,
    FoundryError,
    IdempotencyConflict,
    InvalidData,
    NotFound,
    QuotaExceeded,
    RateLimited,
    StateConflict,
    StorageFull,
    StorageUnavailable,
    Unauthorized,
    UserError,
)

STATUS: dict[type[FoundryError], HTTPStatus] = {
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    QuotaExceeded: HTTPStatus.FORBIDDEN,
    RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    NotFound: HTTPStatus.NOT_FOUND,
    StateConflict: HTTPStatus.CONFLICT,
    UserError: HTTPStatus.UNPROCESSABLE_ENTITY,
    IdempotencyConflict: HTTPStatus.UNPROCESSABLE_ENTITY,
    DatabaseUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
    StorageUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The nearest ancestor of an error decides; what has none here is the service's own fault and is answered with 500."""
_RETRYABLE = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})
RETRY_AFTER_S = 5
MEDIA_TYPE = "application/problem+json"
_log = structlog.get_logger()


class FieldError(BaseModel):
    """One field at fault."""

    pointer: str
    """JSON pointer into the body; /query/NAME and /headers/NAME for what stands there."""
    code: str
    """A word that stays the same, such as missing."""
    detail: str
    """What is wrong with it, in words."""


class Problem(BaseModel):
    """What went wrong, for people (`detail`) and for programs (`code`)."""

    type: str
    """urn:foundry:problem: and the `code`."""
    title: str
    """What kind of problem it is; the same for every problem of a `code`."""
    status: int
    """Of the answer."""
    detail: str
    """What is wrong in this case, and the way out."""
    instance: str
    """The path of the request."""
    code: str
    """A word that stays the same, such as not_found."""
    request_id: str
    """`X-Request-Id` of the answer; the logs have it too."""
    retryable: bool
    """Whether the same request may succeed later."""
    errors: list[FieldError] = []
    """The fields at fault; empty where none is."""
    line: int | None = None
    """Of a data file, counted from 1; null for Parquet, where `detail` names the row."""
    smallest_bytes: int | None = None
    """The least that a target's budget would have to be."""
    smallest_params: int | None = None
    """The least parameters that a target's budget would have to allow."""


def install(app: Flask) -> None:
    """Answer every exception with a problem."""
    app.register_error_handler(FoundryError, _foundry_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _foundry_error(error: FoundryError) -> Response:
    status = status_of(error)
    if status is None:
        return _unexpected(error)
    more: dict[str, Any] = {}
    if isinstance(error, BudgetUnreachable):
        more = {"smallest_bytes": error.smallest_bytes, "smallest_params": error.smallest_params}
    elif isinstance(error, InvalidData) and error.line is not None:
        more = {"line": error.line}
    title = (type(error).__doc__ or "").splitlines()[0]
    fields = [FieldError(pointer=p.pointer, code=p.code, detail=p.detail) for p in error.problems]
    response = _answer(status, title, error.code, error.message, errors=fields, **more)
    if status is HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RateLimited):
        response.headers["Retry-After"] = str(error.retry_after_s)
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        _log.error("unavailable", error=error.message)
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def status_of(error: FoundryError) -> HTTPStatus | None:
    """What an error is answered with; None for one that is the service's own fault."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)


def _http_error(error: HTTPException) -> Response:
    """What Werkzeug raises: no such route, wrong method, body too large, range not satisfiable ..."""
    if error.code is None or error.code < 400:
        return make_response(error.get_response())
    code = error.name.lower().replace(" ", "_")
    response = _answer(HTTPStatus(error.code), error.name, code, _detail(error))
    response.headers.extend((name, value) for name, value in error.get_headers() if name != "Content-Type")
    return response


def _detail(error: HTTPException) -> str:
    if isinstance(error, NoRoute) and request.url_rule is None:
        return f"there is nothing at {request.path}; /openapi.json lists what there is"
    if isinstance(error, MethodNotAllowed):
        return f"{request.path} takes {', '.join(sorted(error.valid_methods or ()))}, not {request.method}"
    if isinstance(error, RequestEntityTooLarge):
        return f"the body is larger than the {request.max_content_length:,} bytes that {request.path} takes"
    return error.description or error.name


def _unexpected(error: Exception) -> Response:
    """Our fault: the log has everything, the caller the id that finds it there."""
    _log.error("unexpected", exc_info=error)
    return _answer(
        HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed", "internal_error",
        f"the service failed; its log has the reason under the request id {request_id()}",
    )  # fmt: skip


def _answer(status: HTTPStatus, title: str, code: str, detail: str, **more: Any) -> Response:
    problem = Problem(
        type=f"urn:foundry:problem:{code}", title=title, status=status, detail=detail, instance=request.path, code=code,
        request_id=request_id(), retryable=status in _RETRYABLE, **more,
    )  # fmt: skip
    # Not pydantic's own JSON: a detail may quote half a surrogate pair, which only ASCII escapes can carry.
    document = json.dumps(problem.model_dump(exclude_none=True))
    return Response(document, status, content_type=MEDIA_TYPE)
