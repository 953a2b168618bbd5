"""What the service refused, as the class that a caller would catch.

A refusal is a `RequestFailed` (status, problem document, request id) and also the domain's own error, so that
`except NotFound` works the same on both sides of the wire.
"""

from http import HTTPStatus
from typing import Any

import httpx2

from foundry.errors import (
    IdempotencyConflict,
    IllegalTransition,
    NotFound,
    RequestFailed,
    StateConflict,
    Unauthorized,
    UserError,
)


class RefusedInput(RequestFailed, UserError):
    """The request cannot be carried out as given; `problems` names the fields."""


class RefusedKey(RequestFailed, Unauthorized):
    """The service does not accept this API key."""


class RefusedAsUnknown(RequestFailed, NotFound):
    """The service has no such object in this project."""


class RefusedByState(RequestFailed, StateConflict):
    """The object is not in a state that allows this."""


class RefusedTransition(RequestFailed, IllegalTransition):
    """The job's status does not allow this."""


class RefusedReuse(RequestFailed, IdempotencyConflict):
    """This idempotency key was used with another request."""


_BY_CODE: dict[str, type[RequestFailed]] = {
    IllegalTransition.code: RefusedTransition,
    IdempotencyConflict.code: RefusedReuse,
}
_BY_STATUS: dict[int, type[RequestFailed]] = {
    HTTPStatus.BAD_REQUEST: RefusedInput,
    HTTPStatus.UNAUTHORIZED: RefusedKey,
    HTTPStatus.FORBIDDEN: RefusedKey,
    HTTPStatus.NOT_FOUND: RefusedAsUnknown,
    HTTPStatus.CONFLICT: RefusedByState,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: RefusedInput,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: RefusedInput,
    HTTPStatus.UNPROCESSABLE_ENTITY: RefusedInput,
}


def refusal(response: httpx2.Response) -> RequestFailed:
    """The error for an answer other than 2xx, whose body has been read."""
    problem = _problem(response)
    kind = _BY_CODE.get(str(problem.get("code"))) or _BY_STATUS.get(response.status_code, RequestFailed)
    return kind(response.status_code, problem)


def _problem(response: httpx2.Response) -> dict[str, Any]:
    """The problem document; made up from the status line when a proxy answered instead of the service."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    return {"title": f"HTTP {response.status_code} {response.reason_phrase} from {response.request.url}"}
