"""One HTTP connection pool, and the rules for when a request is sent again.

A request is repeated when nothing can happen twice: reading, replacing or deleting, or creating under an idempotency
key that stays the same. Anything else is repeated only when it surely did not arrive (no connection) or was turned away
(429, 503). The rules are one flow (flow.py); `Transport` carries it out with blocking calls, `AsyncTransport` with
awaited ones.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from foundry.client.flow import Close, Effect, Emit, Flow, Items, NextLine, Read, Send, Sleep, Work
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
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

R = TypeVar("R")
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


class Transport(Exchange):
    """Carries flows out with blocking calls; safe to share between threads."""

    def __init__(
        self, url: str, key: str, *, transport: httpx2.BaseTransport | None = None, timeout: float = 60.0,
        retries: int = RETRIES,
    ) -> None:  # fmt: skip
        super().__init__(url, httpx2.Client(transport=transport, **_options(url, key, timeout)), retries)

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def run(self, flow: Flow[R]) -> R:
        """The value that a flow returns."""
        outcome, failed = None, None
        while True:
            try:
                effect = flow.throw(failed) if failed else flow.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            outcome, failed = self._outcome(effect)

    def iterate(self, flow: Items[R]) -> Iterator[R]:
        """The items that a flow emits."""
        outcome, failed = None, None
        try:
            while True:
                try:
                    effect = flow.throw(failed) if failed else flow.send(outcome)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    outcome, failed = None, None
                    yield effect.item
                else:
                    outcome, failed = self._outcome(effect)
        finally:
            flow.close()

    def _outcome(self, effect: Effect) -> tuple[Any, httpx2.RequestError | None]:
        try:
            match effect:
                case Send(request, stream):
                    return self._http.send(request, stream=stream), None
                case NextLine(lines):
                    return next(lines, None), None
                case Read(response):
                    return response.read(), None
                case Close(response):
                    response.close()
                case Sleep(seconds):
                    time.sleep(seconds)
                case Work(function):
                    return function(), None
        except httpx2.RequestError as error:
            return None, error
        return None, None

    @staticmethod
    def lines(response: httpx2.Response) -> Any:
        """What `NextLine` takes its lines from."""
        return response.iter_lines()

    def blocking(self) -> "Transport":
        """The transport that threads may use."""
        return self

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Send a GET whose body the caller reads piece by piece; a cut connection raises `ServiceUnreachable`."""
        response = self.run(self.call("GET", path, headers=headers, stream=True))
        try:
            yield response
        except httpx2.RequestError as error:
            raise self.unreachable(error) from error
        finally:
            response.close()


class AsyncTransport(Exchange):
    """Carries flows out with awaited calls, on one event loop."""

    def __init__(
        self, url: str, key: str, *, transport: httpx2.AsyncBaseTransport | None = None, timeout: float = 60.0,
        retries: int = RETRIES, blocking: httpx2.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        """`blocking` is what threads send through: files are brought home by threads, for writing to disk blocks."""
        super().__init__(url, httpx2.AsyncClient(transport=transport, **_options(url, key, timeout)), retries)
        self._blocking = partial(Transport, url, key, transport=blocking, timeout=timeout, retries=retries)
        self._for_threads: Transport | None = None

    def blocking(self) -> Transport:
        """The transport that threads may use; opened when it is first asked for."""
        self._for_threads = self._for_threads or self._blocking()
        return self._for_threads

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()
        if self._for_threads is not None:
            self._for_threads.close()

    async def run(self, flow: Flow[R]) -> R:
        """The value that a flow returns."""
        outcome, failed = None, None
        while True:
            try:
                effect = flow.throw(failed) if failed else flow.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            outcome, failed = await self._outcome(effect)

    async def iterate(self, flow: Items[R]) -> AsyncIterator[R]:
        """The items that a flow emits."""
        outcome, failed = None, None
        try:
            while True:
                try:
                    effect = flow.throw(failed) if failed else flow.send(outcome)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    outcome, failed = None, None
                    yield effect.item
                else:
                    outcome, failed = await self._outcome(effect)
        finally:
            flow.close()

    async def _outcome(self, effect: Effect) -> tuple[Any, httpx2.RequestError | None]:
        try:
            match effect:
                case Send(request, stream):
                    return await self._http.send(request, stream=stream), None
                case NextLine(lines):
                    return await anext(lines, None), None
                case Read(response):
                    return await response.aread(), None
                case Close(response):
                    await response.aclose()
                case Sleep(seconds):
                    await asyncio.sleep(seconds)
                case Work(function):
                    return await asyncio.to_thread(function), None
        except httpx2.RequestError as error:
            return None, error
        return None, None

    @staticmethod
    def lines(response: httpx2.Response) -> Any:
        """What `NextLine` takes its lines from."""
        return response.aiter_lines()


def below(path: str, *names: str) -> str:
    """A resource's path; a name never adds a level, whatever it contains."""
    return "/".join((path, *(quote(name, safe="") for name in names)))


def backoff_s(retries: int) -> float:
    """Seconds before the next try: 0.25, 0.5, 1, 2, 4, with jitter so that many clients do not come back at once."""
    return float(min(0.25 * 2**retries, 4.0) * random.uniform(0.75, 1.25))


def _options(url: str, key: str, timeout: float) -> dict[str, Any]:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ServiceUnreachable(f"{url!r} is not an address ({error}); write http://HOST:PORT") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise ServiceUnreachable(f"{url!r} is not an address; write http://HOST:PORT")
    return {
        "base_url": url, "headers": {"Authorization": f"Bearer {key}", "User-Agent": "foundry-python"},
        "timeout": httpx2.Timeout(timeout, connect=min(timeout, 5.0)),
        "trust_env": address.host not in _LOOPBACK,  # a proxy cannot reach this machine's own service
    }  # fmt: skip


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
