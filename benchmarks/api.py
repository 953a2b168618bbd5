"""`make bench-api`: the service behind gunicorn on loopback, on SQLite and on PostgreSQL, with many jobs in its tables.

Measures submit, get and list with an empty table and with 100,000 jobs; the time from an event's commit to a reader of
its stream, with one stream open and with 200; the rate of a download against plain sendfile; the memory of the API's
process. Load and service share the machine, so compare figures of one run with each other.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from sqlalchemy import insert

from benchmarks.plain import serve_file
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from foundry.store.ids import new_id
from foundry.store.tables import JobRow
from tests.servers import free_port, running_postgres
from tests.serving import Serving

ROOT = Path(__file__).parents[1]
JOBS = "/v1/customization/jobs"
STATUSES = ("succeeded", "failed", "cancelled", "queued")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One kind of request under load. Milliseconds are of a whole request as the client sees it."""

    what: str
    requests_per_s: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"{self.what:<42}{self.requests_per_s:>8.0f}/s {self.p50_ms:>8.1f} ms {self.p99_ms:>8.1f} ms"


class Api:
    """A gunicorn process and how to talk to it."""

    def __init__(self, serving: Serving, port: int) -> None:
        self.serving, self.port = serving, port
        self.headers = {"Authorization": f"Bearer {serving.key}", "Content-Type": "application/json"}

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> Any:
        connection.request(method, path, body, self.headers)
        response = connection.getresponse()
        raw = response.read()
        assert response.status < 300, raw
        return json.loads(raw)

    def load(
        self, what: str, ask: Callable[[http.client.HTTPConnection], Any], clients: int, seconds: float
    ) -> Figures:
        """As many requests as `clients` get answered, one after the other each."""
        taken: list[float] = []
        end = time.monotonic() + seconds

        def work() -> None:
            with closing(self.connection()) as connection:
                while (began := time.monotonic()) < end:
                    ask(connection)
                    taken.append(time.monotonic() - began)

        began = time.monotonic()
        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken.sort()
        lasted = time.monotonic() - began
        p99 = taken[min(len(taken) - 1, int(0.99 * len(taken)))]
        return Figures(what=what, requests_per_s=len(taken) / lasted, p50_ms=1000 * median(taken), p99_ms=1000 * p99)


@contextmanager
def running(serving: Serving, url: str, processes: int) -> Iterator[tuple[Api, list[psutil.Process]]]:
    """The API on this database; also the processes that answer."""
    port = free_port()
    environment = {
        **os.environ, "FOUNDRY_HOME": str(serving.settings.home), "FOUNDRY_PORT": str(port),
        "FOUNDRY_DATABASE_URL": url, "FOUNDRY_TEACHER_ROOTS": str(serving.teacher.parent),
        "FOUNDRY_REQUESTS_PER_MINUTE": "100000000", "WEB_CONCURRENCY": str(processes),
    }  # fmt: skip
    command = [sys.executable, "-m", "gunicorn", "--config", "python:api.gunicorn_conf", "api.wsgi:app"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        api = Api(serving, port)
        while True:
            try:
                with closing(api.connection()) as connection:
                    connection.request("GET", "/readyz")
                    if connection.getresponse().status == 200:
                        break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield api, psutil.Process(process.pid).children()
    finally:
        process.terminate()
        process.wait(60)


def fill(serving: Serving, count: int) -> list[str]:
    """Jobs of the past, newest last."""
    spec = parse(JobSpec, serving.spec()).model_dump(mode="json")
    inputs = {"teacher": str(serving.teacher), "dataset_id": serving.dataset.id, "data_sha256": serving.dataset.sha256}
    rows = [
        {
            "id": new_id("job"), "project_id": serving.project, "name": "", "status": STATUSES[n % 3], "spec": spec,
            "inputs": inputs, "epoch": 0, "fruitless_attempts": 0, "last_seq": 0, "created_at": float(n),
        }
        for n in range(count)
    ]  # fmt: skip
    with serving.memory.database.write() as session:
        for start in range(0, count, 5000):
            session.execute(insert(JobRow), rows[start : start + 5000])
    return [row["id"] for row in rows]


def requests(api: Api, jobs: list[str], clients: int, seconds: float) -> Iterator[Figures]:
    """Every kind of request with as many jobs in the table."""
    label = f"{len(jobs):,} jobs"
    body = json.dumps(api.serving.spec())
    yield api.load(f"submit, {label}", lambda c: api.ask(c, "POST", JOBS, body), clients, seconds)
    known = jobs[len(jobs) // 2] if jobs else api.serving.submit().id
    yield api.load(f"get, {label}", lambda c: api.ask(c, "GET", f"{JOBS}/{known}"), clients, seconds)
    lists = {"list, first page": "?limit=20", "list, one status": "?limit=20&status=failed"}
    if jobs:
        lists["list, from the middle"] = f"?limit=20&after={known}"
    for what, query in lists.items():
        path = f"{JOBS}{query}"
        yield api.load(f"{what}, {label}", lambda c, path=path: api.ask(c, "GET", path), clients, seconds)


def event_delays_ms(api: Api, streams: int, events: int) -> list[float]:
    """From the commit of an event to its arrival, on one of so many open streams."""
    serving = api.serving
    job = serving.submit()
    claim = serving.memory.jobs.claim("bench", job.id)
    assert claim is not None
    path, delays = f"{JOBS}/{job.id}/events", []
    with ExitStack() as stack:
        opened = []
        for _ in range(streams):
            connection = stack.enter_context(closing(api.connection()))
            connection.request("GET", path, headers={**api.headers, "Accept": "text/event-stream"})
            opened.append(connection.getresponse())
        first = opened[0]
        _read_until(first, "job.started")
        for number in range(events):
            time.sleep(0.15)
            serving.memory.jobs.append(claim, [RunEvent(type=EventType.LOG, message=f"event {number}")])
            committed = time.monotonic()
            _read_until(first, f"event {number}")
            delays.append(1000 * (time.monotonic() - committed))
    serving.memory.jobs.release(claim, "done")
    serving.memory.jobs.cancel(serving.project, job.id)
    return sorted(delays)


def _read_until(response: http.client.HTTPResponse, word: str) -> None:
    while line := response.readline():
        if line.startswith(b"data:") and word.encode() in line:
            return
    raise AssertionError("the stream ended")


def download_mb_per_s(port: int, path: str, headers: dict[str, str]) -> float:
    """Of one file over one connection, read and dropped."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        began = time.monotonic()
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        size, buffer = 0, bytearray(2**20)
        while count := response.readinto(buffer):
            size += count
        return size / 1e6 / (time.monotonic() - began)


def measure(kind: str, url: str | None, options: argparse.Namespace) -> None:
    """All figures on one database, printed as they come."""
    with TemporaryDirectory(prefix="fdy-bench-") as name:
        serving = Serving(Path(name))
        url = url or f"sqlite:///{serving.settings.home / 'foundry.db'}"
        serving.__dict__["settings"] = serving.settings.model_copy(update={"database_url": url})
        assert serving.teacher and serving.dataset
        print(f"\n{kind}: {options.clients} clients, {options.processes} processes")
        print(f"{'':<42}{'requests':>10} {'p50':>11} {'p99':>11}")
        with running(serving, url, options.processes) as (api, workers):
            for figures in requests(api, [], options.clients, options.seconds):
                print(figures, flush=True)
            for figures in requests(api, fill(serving, options.jobs), options.clients, options.seconds):
                print(figures, flush=True)
            for streams in (1, options.streams):
                delays = event_delays_ms(api, streams, options.events)
                p99 = delays[int(0.99 * len(delays))]
                print(f"event to stream, {streams} open: median {median(delays):.0f} ms, p99 {p99:.0f} ms", flush=True)
            content = os.urandom(2**20) * options.megabytes
            variant = serving.publish(serving.submit(), {"model.gguf": content})
            path = f"/v1/variants/{variant.id}/files/model.gguf"
            blob = serving.memory.variants.file(serving.project, variant.id, "model.gguf")[0]
            ratios = []
            with serve_file(blob) as port:
                for _ in range(options.repeats):
                    plain = download_mb_per_s(port, "/", {})
                    ours = download_mb_per_s(api.port, path, api.headers)
                    ratios.append(ours / plain)
            print(f"download: {ours:.0f} MB/s, {median(ratios):.0%} of plain sendfile (median of {len(ratios)} pairs)")
            memory = ", ".join(f"{worker.memory_info().rss / 1e6:.0f} MB" for worker in workers)
            print(f"memory of the API's processes: {memory}")
        serving.memory.database.close()


def processor() -> str:
    """What the machine calls its processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")


def main() -> None:
    """Both databases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--processes", type=int, default=1, help="of gunicorn")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each kind of request")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only this one")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, load {load:.1f} before the run, Python {sys.version.split()[0]}")
    if options.database != "postgresql":
        measure("SQLite", None, options)
    if options.database != "sqlite":
        with running_postgres(fsync=True) as postgres:
            measure("PostgreSQL", postgres.new_database(), options)


if __name__ == "__main__":
    socket.setdefaulttimeout(60)
    main()
