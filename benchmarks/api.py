"""`make bench-api`: the service behind gunicorn on loopback, on SQLite and on PostgreSQL, with many jobs in its tables.

Measures submit, get and list with an empty table and with 100,000 jobs, as fast as clients can ask and at 100 submits a
second; the time from an event's commit to the readers of its stream, with one stream open and with 200; the rate of a
download against plain sendfile; the processor time of the console's pages; the memory of the API's processes. Prints
Markdown for docs/results.md. Load and service share the machine, so compare figures of one run with each other.
"""

import argparse
import http.client
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import structlog
from sqlalchemy import insert

from api.app import create_app
from benchmarks.load import Client, Figures, busy, paced, quantile
from benchmarks.plain import serve_file
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from foundry.store.ids import new_id
from foundry.store.tables import JobRow
from tests.servers import free_port, running_postgres
from tests.serving import Serving
from tests.unit.api.browsing import Browser

ROOT = Path(__file__).parents[1]
JOBS = "/v1/customization/jobs"
STATUSES = ("succeeded", "failed", "cancelled")
PAGES = {"overview": "/", "the part asked for every second": "/live", "jobs": "/jobs", "new job": "/jobs/new"}


class Api:
    """Gunicorn's processes and how to talk to them."""

    def __init__(self, serving: Serving, port: int, gunicorn: psutil.Process) -> None:
        self.serving, self.port, self._gunicorn = serving, port, gunicorn

    def connect(self) -> Client:
        """A connection of its own."""
        return Client(self.port, self.serving.key)

    def cpu_s(self) -> float:
        """Processor time that the answering processes have used."""
        times = [worker.cpu_times() for worker in self._gunicorn.children()]
        return float(sum(t.user + t.system for t in times))

    def memory_mb(self) -> str:
        """Resident memory of each answering process."""
        return " and ".join(f"{worker.memory_info().rss / 1e6:.0f}" for worker in self._gunicorn.children())


@contextmanager
def running(serving: Serving, processes: int) -> Iterator[Api]:
    """The API on this service's database."""
    port = free_port()
    environment = {
        **os.environ, "FOUNDRY_HOME": str(serving.settings.home), "FOUNDRY_PORT": str(port),
        "FOUNDRY_DATABASE_URL": serving.settings.database_url, "FOUNDRY_TEACHER_ROOTS": str(serving.teacher.parent),
        "FOUNDRY_REQUESTS_PER_MINUTE": "100000000", "WEB_CONCURRENCY": str(processes),
    }  # fmt: skip
    command = [sys.executable, "-m", "gunicorn", "--config", "python:api.gunicorn_conf", "api.wsgi:app"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        gunicorn = psutil.Process(process.pid)
        while len(gunicorn.children()) < processes or not _is_ready(port):
            assert process.poll() is None
            time.sleep(0.1)
        yield Api(serving, port, gunicorn)
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False


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


def requests(api: Api, jobs: list[str], options: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """Every kind of request with as many jobs in the table."""
    submit = ("POST", JOBS, json.dumps(api.serving.spec()).encode())
    rate = f"submit, {options.rate:g}/s asked for"
    yield rate, paced(api.connect, api.cpu_s, submit, options.rate, 2 * options.seconds)
    asked = partial(busy, api.connect, api.cpu_s, clients=options.clients, seconds=options.seconds)
    yield "submit", asked(submit)
    known = jobs[len(jobs) // 2] if jobs else api.serving.submit().id
    kinds = {
        "get": f"/{known}", "list of 20, first page": "?limit=20", "list of 20, one status": "?limit=20&status=queued"
    }  # fmt: skip
    if jobs:
        kinds["list of 20, from the middle"] = f"?limit=20&after={known}"
    for what, query in kinds.items():
        yield what, asked(("GET", f"{JOBS}{query}", b""))


def event_delays_ms(api: Api, streams: int, events: int) -> tuple[list[float], list[float]]:
    """From the commit of an event to its arrival on the first and on the last of so many open streams of one job."""
    serving = api.serving
    job = serving.submit()
    claim = serving.memory.jobs.claim("bench", job.id)
    assert claim is not None
    first, last = [], []
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(api.connect())) for _ in range(streams)]
        for client in clients:
            client.send("GET", f"{JOBS}/{job.id}/events", headers="Accept: text/event-stream\r\n")
            client.until(b"job.started")
        for number in range(events):
            time.sleep(0.05 + 0.1 * number / events)  # at every moment of the watcher's beat alike
            serving.memory.jobs.append(claim, [RunEvent(type=EventType.LOG, message=f"event {number}.")])
            committed = time.monotonic()
            clients[0].until(f"event {number}.".encode())
            first.append(1000 * (time.monotonic() - committed))
            for client in clients[1:]:
                client.until(f"event {number}.".encode())
            last.append(1000 * (time.monotonic() - committed))
    serving.memory.jobs.release(claim, "done")
    serving.memory.jobs.cancel(serving.project, job.id)
    return sorted(first), sorted(last)


def download_mb_per_s(port: int, path: str, headers: Mapping[str, str]) -> float:
    """Of one file over one connection, read and dropped."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        began = time.monotonic()
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        size, buffer = 0, bytearray(2**20)
        while count := response.readinto(buffer):
            size += count
        return size / 1e6 / (time.monotonic() - began)


def downloads(api: Api, options: argparse.Namespace) -> str:
    """Ours beside plain sendfile, by turns on the same file."""
    content = os.urandom(2**20) * options.megabytes
    variant = api.serving.publish(api.serving.submit(), {"model.gguf": content})
    path = f"/v1/variants/{variant.id}/files/model.gguf"
    blob = api.serving.memory.variants.file(api.serving.project, variant.id, "model.gguf")[0]
    pairs = []
    with serve_file(blob) as port:
        for _ in range(options.repeats):
            plain = download_mb_per_s(port, "/", {})
            pairs.append((download_mb_per_s(api.port, path, {"Authorization": f"Bearer {api.serving.key}"}), plain))
    ratios = sorted(ours / plain for ours, plain in pairs)
    return (
        f"Download of {len(content) / 1e6:.0f} MB: {median(ours for ours, _ in pairs):,.0f} MB/s, plain sendfile "
        f"{median(plain for _, plain in pairs):,.0f} MB/s; {median(ratios):.0%} (median of {len(ratios)} pairs, "
        f"{ratios[0]:.0%} to {ratios[-1]:.0%}). Aim: at least 80 %."
    )


def table(api: Api, jobs: list[str], options: argparse.Namespace) -> None:
    """One row a kind of request."""
    print(f"\nWith {len(jobs):,} jobs before, {options.clients} clients:\n")
    print("| | requests/s | p50, ms | p99, ms | processor time, ms |\n|---|---|---|---|---|")
    for what, found in requests(api, jobs, options):
        numbers = f"{found.requests_per_s:.0f} | {found.p50_ms:.1f} | {found.p99_ms:.1f} | {found.cpu_ms:.1f}"
        print(f"| {what} | {numbers} |", flush=True)


def measure(processes: int, serving: Serving, jobs: list[str], options: argparse.Namespace) -> list[str]:
    """All figures with so many processes, printed as they come; the jobs in the table then."""
    with running(serving, processes) as api:
        fresh_mb = api.memory_mb()
        warm = ("POST", JOBS, json.dumps(serving.spec()).encode())
        paced(api.connect, api.cpu_s, warm, options.rate, 1.0)  # connections, caches, threads: a deploy, not a load
        if not jobs:
            table(api, jobs, options)
            jobs = fill(serving, options.jobs)
        table(api, jobs, options)
        print()
        for streams in (1, options.streams):
            first, last = event_delays_ms(api, streams, options.events)
            print(
                f"- From commit to reader, {streams} open on one job: {median(first):.0f} ms (median), "
                f"{quantile(first, 0.99):.0f} ms (p99); to the last of them {median(last):.0f} and "
                f"{quantile(last, 0.99):.0f} ms.",
                flush=True,
            )
        print(f"- {downloads(api, options)}")
        print(f"- Memory of the API's processes: {fresh_mb} MB at first, {api.memory_mb()} MB after all that.")
    return jobs


def pages(serving: Serving) -> None:
    """What the console's pages cost in one process without a socket, with the jobs of the tables before."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    reader = Browser(create_app(serving.settings), serving.key)
    print("\nThe console, processor time, median of eleven:\n\n| page | ms | bytes |\n|---|---|---|")
    for name, path in PAGES.items():
        taken = []
        for _ in range(12):
            began = time.process_time()
            answer = reader.get(path)
            taken.append(1000 * (time.process_time() - began))
        print(f"| {name} | {median(taken[1:]):.0f} | {len(answer.data):,} |", flush=True)


def on(database: str, url: str | None, options: argparse.Namespace) -> None:
    """Everything on one database."""
    with TemporaryDirectory(prefix="fdy-bench-") as name:
        serving = Serving(Path(name))
        if url is not None:
            serving.__dict__["settings"] = serving.settings.model_copy(update={"database_url": url})
        assert serving.teacher and serving.dataset
        jobs: list[str] = []
        for processes in options.processes:
            print(f"\n### {database}, {processes} process{'es' if processes > 1 else ''}")
            jobs = measure(processes, serving, jobs, options)
        pages(serving)
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
    parser.add_argument("--rate", type=float, default=100, help="submits a second that are asked for")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of gunicorn, one run for each")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each kind of request; twice that at a rate")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only this one")
    options = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("SQLAlchemy", "Flask", "gunicorn", "psycopg"))
    print(
        f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the run; "
        f"Python {platform.python_version()}, {packages}."
    )
    if options.database != "postgresql":
        on("SQLite", None, options)
    if options.database != "sqlite":
        with running_postgres(fsync=True) as postgres:
            on("PostgreSQL", postgres.new_database(), options)
    print(f"\nLoad after the run: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
