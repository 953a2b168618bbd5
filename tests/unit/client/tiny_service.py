"""A small real HTTP server that answers as it is told: the faults of a network, on demand.

It is no stand-in for the API (tests/integration/cli walks the real one); it is what a real one cannot be asked for: a
connection cut at byte N, a wrong byte, a Retry-After, a silence.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Seen(NamedTuple):
    """A request as it arrived; header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to send. `cut` is the number of body bytes after which the connection is dropped."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    silence_s: float = 0.0


Responder = Callable[[Seen], Answer]


class TinyService(ThreadingHTTPServer):
    """Routes by path to responders; remembers every request."""

    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[Seen] = []
        self.routes: dict[str, Responder] = {}
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> "TinyService":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests are about; anything else is printed, as it is by default."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def on(self, path: str, *answers: Answer) -> None:
        """Give these answers one after the other; the last one again and again."""
        left = list(answers)
        self.routes[path] = lambda seen: left.pop(0) if len(left) > 1 else left[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TinyService

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        seen = Seen(self.command, unquote(parts.path), query, headers, body)
        self.server.seen.append(seen)
        responder = self.server.routes.get(seen.path)
        self._send(responder(seen) if responder else problem(404, "not_found", f"no {seen.path}"))

    do_GET = do_POST = _serve

    def _send(self, answer: Answer) -> None:
        time.sleep(answer.silence_s)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
        except ConnectionError:  # the client went away, as some tests want
            self.close_connection = True
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def document(content: Any, status: int = 200, **headers: str) -> Answer:
    """A JSON answer."""
    return Answer(
        status=status, body=json.dumps(content).encode(), headers={"Content-Type": "application/json", **headers}
    )


def problem(status: int, code: str, detail: str, *, retry_after: str | None = None, **more: Any) -> Answer:
    """A problem document (RFC 9457)."""
    headers = {"Content-Type": "application/problem+json"} | ({"Retry-After": retry_after} if retry_after else {})
    body = {"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code, **more}
    return Answer(status=status, body=json.dumps({"request_id": "req_1", **body}).encode(), headers=headers)


def ranged(content: bytes, seen: Seen, **faults: Any) -> Answer:
    """A file as the service sends it: the rest from `Range`, unless `If-Range` names other bytes."""
    etag = f'"{sha256(content).hexdigest()}"'
    wanted = re.fullmatch(r"bytes=(\d+)-", seen.headers.get("range", ""))
    if not wanted or seen.headers.get("if-range", etag) != etag:
        return Answer(body=content, headers={"ETag": etag}, **faults)
    start = int(wanted[1])
    if start >= len(content):
        return Answer(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
    headers = {"ETag": etag, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return Answer(status=206, body=content[start:], headers=headers, **faults)
