"""The service behind real gunicorn on loopback: streams, ranges, large and broken uploads, full slots, a stop."""

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.streams import STREAMS
from tests.serving import DATA, Serving, problem_of

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
FILE = os.urandom(3_000_000)


class Server:
    """A gunicorn process and how to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, serving: Serving) -> None:
        self.process, self.port, self.serving = process, port, serving
        self.headers = {"Authorization": f"Bearer {serving.key}"}

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        """One request on a connection of its own: status, headers, body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(
                method, path, body, {**self.headers, **named}, encode_chunked=not isinstance(body, bytes)
            )
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def stream(self, path: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """An open event stream; the caller closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers={**self.headers, "Accept": "text/event-stream"})
        return connection, connection.getresponse()

    def send_raw(self, head: str, body: bytes) -> bytes:
        """A request that ends where `body` does, whatever its headers promise; the whole answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            lines = [head, "Host: localhost", f"Authorization: {self.headers['Authorization']}", "Connection: close"]
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)

    def staged(self) -> list[Path]:
        return list((self.serving.settings.artifacts / "incoming").rglob("*"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _gunicorn(tmp_path_factory.mktemp("gunicorn")) as server:
        yield server


@contextmanager
def _gunicorn(folder: Path, **more: str) -> Iterator[Server]:
    serving = Serving(folder)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ, "FOUNDRY_HOME": str(serving.settings.home), "FOUNDRY_PORT": str(port),
        "FOUNDRY_TEACHER_ROOTS": str(serving.teacher.parent), "FOUNDRY_MAX_UPLOAD_BYTES": "1e8", **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "gunicorn", "--config", "python:api.gunicorn_conf", "api.wsgi:app"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    server = Server(process, port, serving)
    assert serving.key
    try:
        _wait_until_ready(server, folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait(40)
        serving.memory.database.close()


def _wait_until_ready(server: Server, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.process.poll() is None, log.read_text()
        try:
            if server.ask("/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_a_stream_carries_each_event_as_it_happens_and_then_ends(server: Server) -> None:
    serving = server.serving
    job = serving.submit()
    connection, response = server.stream(f"/v1/customization/jobs/{job.id}/events")
    with closing(connection):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert _next_event(response)["type"] == "job.submitted"
        happened_at = time.monotonic()
        serving.memory.jobs.cancel(serving.project, job.id)
        assert _next_event(response)["type"] == "job.cancelled"
        assert time.monotonic() - happened_at < 5
        assert response.read().strip() == b""


def _next_event(response: http.client.HTTPResponse) -> dict[str, Any]:
    while line := response.readline():
        if line.startswith(b"data: "):
            event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
            return event
    raise AssertionError("the stream ended")


def test_a_download_goes_on_where_it_was_cut(server: Server) -> None:
    variant = server.serving.publish(server.serving.submit(), {"kiosk.gguf": FILE})
    path = f"/v1/variants/{variant.id}/files/kiosk.gguf"
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("GET", path, headers=server.headers)
        response = connection.getresponse()
        etag = response.headers["ETag"]
        first = response.read(1_000_001)  # then the line is cut
    status, headers, rest = server.ask(path, Range=f"bytes={len(first)}-", If_Range=etag)
    assert status == 206
    assert headers["Content-Range"] == f"bytes {len(first)}-{len(FILE) - 1}/{len(FILE)}"
    assert first + rest == FILE
    assert etag == f'"{hashlib.sha256(FILE).hexdigest()}"'
    assert server.ask(path)[2] == FILE


def test_a_large_upload_is_never_whole_in_memory(server: Server) -> None:
    row = json.dumps({"text": "word " * 200}).encode() + b"\n"
    chunk, count = row * 1000, 80
    (worker,) = psutil.Process(server.process.pid).children()
    server.ask("/v1/datasets?name=warm.jsonl", "POST", DATA)
    before = worker.memory_info().rss
    peak = 0

    def chunks() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(count):
            yield chunk
            peak = max(peak, worker.memory_info().rss)

    status, _, raw = server.ask("/v1/datasets?name=large.jsonl", "POST", chunks(), Transfer_Encoding="chunked")
    peak = max(peak, worker.memory_info().rss)
    assert status == 201, raw
    made = json.loads(raw)
    assert (made["documents"], made["bytes"]) == (1000 * count, len(chunk) * count)
    assert made["bytes"] > 80_000_000
    assert peak - before < 24_000_000
    assert server.staged() == []


def test_an_upload_in_chunks_is_refused_when_it_grows_too_large(server: Server) -> None:
    chunk = b'{"text": "x"}\n' * 80_000

    def endless() -> Iterator[bytes]:
        while True:
            yield chunk

    try:
        status, _, raw = server.ask("/v1/datasets?name=endless.jsonl", "POST", endless(), Transfer_Encoding="chunked")
        assert status == 413
        problem_of(raw, 413)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the answer came while we were still sending, and the line was cut: refused all the same
    assert "endless.jsonl" not in [d.name for d in server.serving.memory.datasets.list(server.serving.project).data]
    _eventually(lambda: server.staged() == [])


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("POST /v1/datasets?name=cut.jsonl HTTP/1.1\r\nContent-Length: 1000", DATA),
        ("POST /v1/datasets?name=cut.jsonl HTTP/1.1\r\nTransfer-Encoding: chunked", b"20\r\n" + DATA + b"\r\n"),
    ],
    ids=["with Content-Length", "in chunks"],
)
def test_an_upload_leaves_nothing_when_the_line_is_cut(server: Server, head: str, body: bytes) -> None:
    answer = server.send_raw(head, body)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert "cut.jsonl" not in [d.name for d in server.serving.memory.datasets.list(server.serving.project).data]
    _eventually(lambda: server.staged() == [])


def test_a_sender_that_dribbles_is_cut_off_and_leaves_nothing(tmp_path: Path) -> None:
    """Each byte comes in time, the next piece does not; who sends steadily is not cut off."""
    with (
        _gunicorn(tmp_path, FOUNDRY_UPLOAD_SILENCE_S="3") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
    ):
        lines = [
            "POST /v1/datasets?name=slow.jsonl HTTP/1.1", "Host: localhost", "Content-Length: 1000000",
            f"Authorization: {server.headers['Authorization']}",
        ]  # fmt: skip
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with pytest.raises(OSError):
            for _ in range(300):
                connection.sendall(b"x")
                time.sleep(0.1)
        assert server.ask("/healthz")[0] == 200
        assert server.ask("/v1/datasets?name=steady.jsonl", "POST", DATA)[0] == 201
        _await(lambda: server.staged() == [])


def _await(happened: Any) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_path_that_climbs_is_not_found(server: Server) -> None:
    variant = server.serving.publish(server.serving.submit(), {"a.txt": b"a"})
    for path in ("../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/secret"):
        answer = server.send_raw(f"GET /v1/variants/{variant.id}/files/{path} HTTP/1.1", b"")
        assert answer.startswith(b"HTTP/1.1 404"), answer


def test_ordinary_requests_are_served_while_every_stream_is_taken(server: Server) -> None:
    path = f"/v1/customization/jobs/{server.serving.submit().id}/events"
    opened = [server.stream(path) for _ in range(STREAMS)]
    try:
        assert {response.status for _, response in opened} == {200}
        status, headers, raw = server.ask(path, Accept="text/event-stream")
        assert (status, problem_of(raw, 503)["retryable"]) == (503, True)
        assert int(headers["Retry-After"]) > 0
        began_at = time.monotonic()
        for _ in range(20):
            assert server.ask("/v1/targets")[0] == 200
        assert time.monotonic() - began_at < 5
    finally:
        server.serving.memory.jobs.cancel(server.serving.project, path.split("/")[4])
        for connection, response in opened:
            assert b"job.cancelled" in response.read()
            connection.close()
    _eventually(lambda: server.ask(path, Accept="text/event-stream", Last_Event_ID="1")[0] == 200)


def test_many_requests_at_once_make_one_job_when_they_share_a_key(server: Server) -> None:
    body = json.dumps(server.serving.spec()).encode()
    answers: list[tuple[int, bytes]] = []

    def submit() -> None:
        status, _, raw = server.ask(
            "/v1/customization/jobs", "POST", body, Content_Type="application/json", Idempotency_Key="together"
        )
        answers.append((status, json.loads(raw)["id"]))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert {status for status, _ in answers} == {201}
    assert len({job_id for _, job_id in answers}) == 1


def test_the_service_stops_soon_and_streams_end_whole_when_it_is_told_to(tmp_path: Path) -> None:
    with _gunicorn(tmp_path) as server:
        connection, response = server.stream(f"/v1/customization/jobs/{server.serving.submit().id}/events")
        with closing(connection):
            assert _next_event(response)["seq"] == 1
            began_at = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            response.read()  # raises IncompleteRead when the line is cut instead of the stream ended
            assert server.process.wait(30) == 0
            assert time.monotonic() - began_at < 15


def _eventually(is_so: Any) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
