"""What the SDK does, written once for programs that wait and for programs that await.

A verb is a generator: it yields what it needs from the world (`Send` a request, `Sleep`, the `NextLine` of a stream)
and gets the outcome back; of a listing it also yields each item as an `Emit`. `Transport` runs it with blocking calls,
`AsyncTransport` with awaited ones. So `foundry.jobs.get(id)` returns a `Job`, and on an `AsyncFoundry` it returns an
awaitable of one, from the same lines of code; type checkers see both.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar, overload

import httpx2

if TYPE_CHECKING:
    from foundry.client.transport import AsyncTransport, Transport

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", "Transport", "AsyncTransport")


@dataclass(frozen=True)
class Send:
    """Send a request; the outcome is the response, read unless it is to be streamed. May raise `RequestError`."""

    request: httpx2.Request
    stream: bool = False


@dataclass(frozen=True)
class NextLine:
    """The next line of a response that is streamed; the outcome is None at its end. May raise `RequestError`."""

    lines: Any


@dataclass(frozen=True)
class Read:
    """Read the rest of a response that is streamed."""

    response: httpx2.Response


@dataclass(frozen=True)
class Close:
    """Let go of a response that is streamed."""

    response: httpx2.Response


@dataclass(frozen=True)
class Sleep:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Emit(Generic[R]):
    """One item of a listing."""

    item: R


@dataclass(frozen=True)
class Work:
    """Do something that keeps a thread busy, such as reading a file; the outcome is its value."""

    function: Callable[[], Any]


Effect: TypeAlias = Send | NextLine | Read | Close | Sleep | Work
Flow: TypeAlias = Generator[Effect, Any, R]
Items: TypeAlias = Generator[Effect | Emit[R], Any, None]


def feed(items: Items[R], take: Callable[[R], None]) -> Flow[None]:
    """Give every item of a listing to `take`, within another flow."""
    outcome: Any = None
    failed: Exception | None = None
    while True:
        try:
            effect = items.throw(failed) if failed else items.send(outcome)
        except StopIteration:
            return
        outcome = failed = None
        if isinstance(effect, Emit):
            take(effect.item)
        else:
            try:
                outcome = yield effect
            except httpx2.RequestError as error:
                failed = error


class Resource(Generic[T]):
    """Verbs of one kind of object, on a transport of either kind."""

    def __init__(self, transport: T) -> None:
        self._transport: T = transport


class verb(Generic[P, R]):
    """A method with one answer: its value, or an awaitable of it."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Flow[R]]) -> None:
        self.flow = flow
        update_wrapper(self, flow)  # type: ignore[arg-type]

    @overload
    def __get__(self, instance: None, owner: Any) -> "verb[P, R]": ...
    @overload
    def __get__(self, instance: "Resource[Transport]", owner: Any) -> Callable[P, R]: ...
    @overload
    def __get__(self, instance: "Resource[AsyncTransport]", owner: Any) -> Callable[P, Awaitable[R]]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return instance._transport.run(self.flow(instance, *args, **kwargs))

        return update_wrapper(method, self.flow)


class listing(Generic[P, R]):
    """A method with many answers: an iterator of them, or an asynchronous one. Pages are fetched as they are needed."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Items[R]]) -> None:
        self.flow = flow
        update_wrapper(self, flow)  # type: ignore[arg-type]

    @overload
    def __get__(self, instance: None, owner: Any) -> "listing[P, R]": ...
    @overload
    def __get__(self, instance: "Resource[Transport]", owner: Any) -> Callable[P, Iterator[R]]: ...
    @overload
    def __get__(self, instance: "Resource[AsyncTransport]", owner: Any) -> Callable[P, AsyncIterator[R]]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return instance._transport.iterate(self.flow(instance, *args, **kwargs))

        return update_wrapper(method, self.flow)
