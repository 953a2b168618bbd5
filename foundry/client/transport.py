"""Two ways to carry out what the SDK does (flow.py): with blocking calls, and with awaited ones.

Each has one pool of connections to one service, with one key.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import httpx2

from foundry.client.exchange import RETRIES, Exchange
from foundry.client.flow import Close, Effect, Emit, Flow, Items, NextLine, Read, Send, Sleep, Work
from foundry.errors import ServiceUnreachable

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
R = TypeVar("R")


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
                    return self._http.send(request, stream=stream, follow_redirects=request.method == "GET"), None
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
                    return await self._http.send(request, stream=stream, follow_redirects=request.method == "GET"), None
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
