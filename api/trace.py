"""One id and one log line for every request."""

import re
import sys
import time
from uuid import uuid4

import structlog
from flask import Flask, Response, g, request

_HEADER = "X-Request-Id"
_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_log = structlog.get_logger()


def install(app: Flask) -> None:
    """Before everything else: what follows may fail, and its failure needs the id."""
    app.before_request(_begin)
    app.after_request(_end)


def request_id() -> str:
    """The id of the running request: the caller's own when it is a plain word, else a new one."""
    return str(g.request_id)


def log_to_stderr() -> None:
    """One JSON object a line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _begin() -> None:
    given = request.headers.get(_HEADER, "")
    g.request_id = given if _GIVEN.fullmatch(given) else uuid4().hex
    g.began_at = time.monotonic()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _end(response: Response) -> Response:
    response.headers[_HEADER] = request_id()
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    _log.info(
        "request", method=request.method, path=request.path, status=response.status_code,
        duration_ms=round(1000 * (time.monotonic() - g.began_at), 1),
    )  # fmt: skip
    return response
