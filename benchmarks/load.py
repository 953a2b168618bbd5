"""Requests over loopback as cheap as they can be sent, so that the load takes little from what it measures.

Two ways of asking: `busy`, where clients ask again as soon as they are answered and so find out how much there is to
have, and `paced`, where requests are due at fixed moments whether or not those before are answered. What a paced
request takes is counted from when it was due: a service that falls behind cannot hide that by being asked less.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

ROOM_FOR_LATE = 64
"""Connections of a paced load: more requests than these are never on their way at once."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One kind of request under load. Milliseconds are of a whole request as the client sees it."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of the service's own processes for each request; a database server's is not among it."""


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int, key: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, method: str, path: str, body: bytes = b"", headers: str = "") -> None:
        """A request; `headers` are lines that end in CRLF."""
        if body:
            headers += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\n{self._head}{headers}\r\n".encode() + body)

    def answer(self) -> bytes:
        """The body of the answer to the request before, which has to be a success."""
        raw = bytearray()
        while (end := raw.find(b"\r\n\r\n")) < 0:
            raw += self._received()
        head = bytes(raw[:end]).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(raw) < end + 4 + length:
            raw += self._received()
        assert head.startswith(b"http/1.1 2"), bytes(raw)
        return bytes(raw[end + 4 :])

    def ask(self, method: str, path: str, body: bytes = b"") -> Any:
        """Send a request and read its JSON."""
        self.send(method, path, body)
        return json.loads(self.answer())

    def until(self, word: bytes) -> None:
        """Read a stream on until a line holds this word."""
        held = b""
        while word not in held:
            held = held[-len(word) :] + self._received()

    def _received(self) -> bytes:
        received = self._socket.recv(2**16)
        assert received, "the service hung up"
        return received


def busy(
    connect: Callable[[], Client], cpu_s: Callable[[], float], request: tuple[str, str, bytes], clients: int,
    seconds: float,
) -> Figures:  # fmt: skip
    """As many requests as `clients` get answered, one after the other each."""
    end = time.monotonic() + seconds

    def due(_: int) -> float | None:
        now = time.monotonic()
        return now if now < end else None

    return _load(connect, cpu_s, request, clients, due)


def paced(
    connect: Callable[[], Client], cpu_s: Callable[[], float], request: tuple[str, str, bytes], per_s: float,
    seconds: float,
) -> Figures:  # fmt: skip
    """So many requests a second, evenly."""
    began, count = time.monotonic() + 0.1, int(per_s * seconds)
    return _load(connect, cpu_s, request, ROOM_FOR_LATE, lambda n: began + n / per_s if n < count else None)


def _load(
    connect: Callable[[], Client], cpu_s: Callable[[], float], request: tuple[str, str, bytes], clients: int,
    due: Callable[[int], float | None],
) -> Figures:  # fmt: skip
    """`due` says when the n-th request is to be sent; None when there are no more."""
    method, path, body = request
    taken: list[float] = []
    failed: list[BaseException] = []
    turn, sent = threading.Lock(), 0

    def work() -> None:
        nonlocal sent
        try:
            with closing(connect()) as client:
                while not failed:
                    with turn:
                        moment = due(sent)
                        sent += 1
                    if moment is None:
                        return
                    time.sleep(max(0.0, moment - time.monotonic()))
                    client.send(method, path, body)
                    client.answer()
                    taken.append(time.monotonic() - moment)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    cpu_before, began = cpu_s(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    lasted, used = time.monotonic() - began, cpu_s() - cpu_before
    taken.sort()
    return Figures(
        requests_per_s=len(taken) / lasted, p50_ms=1000 * quantile(taken, 0.5), p99_ms=1000 * quantile(taken, 0.99),
        cpu_ms=1000 * used / len(taken),
    )  # fmt: skip


def quantile(ordered: list[float], share: float) -> float:
    """The value that this share of the others is not above; `ordered` ascends and is not empty."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
