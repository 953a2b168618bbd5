"""The rules for when a request is sent again, and what an answer means; one flow (flow.py) for both transports.

A request is repeated when nothing can happen twice: reading, replacing or deleting, or creating under an idempotency
key that stays the same. Anything else is repeated only when it surely did not arrive (no connection) or was turned away
(429, 503).
"""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from foundry.client.flow import Close, Flow, Read, Send, Sleep
from foundry.client.refusals import refusal
from foundry.errors import RequestFailed, ServiceError, ServiceUnreachable

RETRIES = 4
"""How often one call is sent again, unless the client says otherwise."""
LONGEST_DELAY_S = 120.0
"""A service that asks for more patience than this with Retry-After is reported to the caller instead."""
_TURNED_AWAY = frozenset({429, 503})
_MAYBE_DONE = frozenset({502, 504})
_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})
_NEVER_ARRIVED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

M = TypeVar("M", bound=BaseModel)


class Exchange:
    """What both transports share: how a request is made, sent again, refused and read."""

    def __init__(self, url: str, http: Any, retries: int) -> None:
        self.url = url
        self.retries = retries
        self._http = http

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stream: bool = False,
    ) -> Flow[httpx2.Response]:
        """Send a request and read the answer, unless it is to be streamed.

        `timeout` is in seconds for one silence on the line. Raises a refusal (`RequestFailed`) or `ServiceUnreachable`.
        """
        request = self._http.build_request(
            method, path, params=params, json=json, content=content, headers=headers,
            timeout=self._http.timeout if timeout is None else httpx2.Timeout(timeout, connect=5.0),
        )  # fmt: skip
        return self._send(request, stream=stream)

    def read(self, kind: type[M], response: httpx2.Response) -> M:
        """The record in an answer; raise `ServiceError` when this SDK does not understand it."""
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "/" + "/".join(str(part) for part in first["loc"])
            raise ServiceError(
                f"{response.request.method} {response.request.url} answered something that is not a "
                f"{kind.__name__} ({place}: {first['msg']}). Is this a Foundry service, and is this SDK as new as it?"
            ) from error

    def unreachable(self, error: httpx2.RequestError) -> ServiceUnreachable:
        """What a broken line means for the caller."""
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return ServiceUnreachable(
                f"{self.url} did not answer in time; it may be busy: try again, or give a longer timeout"
            )
        return ServiceUnreachable(
            f"no answer from {self.url} ({error or type(error).__name__}): start a service with `foundry up`, "
            "or set FOUNDRY_URL to one that runs"
        )

    def _send(self, request: httpx2.Request, *, stream: bool) -> Flow[httpx2.Response]:
        repeatable = request.method in _REPEATABLE or "Idempotency-Key" in request.headers
        retries = 0
        while True:
            try:
                response: httpx2.Response = yield Send(request, stream)
                if response.is_success:
                    return response
                yield Read(response)
                refused = refusal(response)
                yield Close(response)
            except httpx2.RequestError as error:
                if retries == self.retries or not (repeatable or isinstance(error, _NEVER_ARRIVED)):
                    raise self.unreachable(error) from error
                delay_s = backoff_s(retries)
            else:
                wanted_s = _retry_after_s(response)
                if retries == self.retries or not _may_repeat(refused, repeatable) or (wanted_s or 0) > LONGEST_DELAY_S:
                    raise refused
                delay_s = backoff_s(retries) if wanted_s is None else wanted_s
            yield Sleep(delay_s)
            retries += 1


def below(path: str, *names: str) -> str:
    """A resource's path; a name never adds a level, whatever it contains."""
    return "/".join((path, *(quote(name, safe="") for name in names)))


def backoff_s(retries: int) -> float:
    """Seconds before the next try: 0.25, 0.5, 1, 2, 4, with jitter so that many clients do not come back at once."""
    return float(min(0.25 * 2**retries, 4.0) * random.uniform(0.75, 1.25))


def _may_repeat(refused: RequestFailed, repeatable: bool) -> bool:
    if refused.status in _TURNED_AWAY:
        return True
    return repeatable and (refused.status in _MAYBE_DONE or refused.retryable)


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Seconds asked for by Retry-After, given as a number or as a date; None without a readable one."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at - datetime.now(UTC)).total_seconds()) if at.tzinfo else None
