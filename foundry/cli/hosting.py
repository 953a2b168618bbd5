"""The processes behind `foundry up`: started together, watched, stopped together.

Each child runs behind `tether.py`, which ends it when this process is gone, and in a session of its own, so that Ctrl-C
reaches us alone and we stop the others in order.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import foundry
from foundry.cli.listening import listen, url_of
from foundry.cli.render import say
from foundry.errors import OperatorError, StateConflict, Unauthorized
from foundry.spec.access import Scope
from foundry.store.database import Database
from foundry.store.keys import Keys, read_or_make_secret
from foundry.store.settings import Settings

_READY_S = 60.0
_TAIL_LINES = 20


def host(*, any_port: bool, worker: bool, foreground: bool) -> None:
    """Start everything, say where it is, and stay until it ends. Settings come from the environment.

    Raises `OperatorError` when the port is taken, a part is missing, or a child ends by itself (with its last lines).
    """
    root = _checkout()
    settings = Settings.from_env()
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_service_in(settings.home), listen(settings.host, 0 if any_port else settings.port) as listener:
        (settings.home / "url").unlink(missing_ok=True)  # left by one that was killed
        url = url_of(settings.host, listener.getsockname()[1])
        new_key = _prepare(settings)
        with _stop_on_signal() as stop, _Children(settings, root, foreground) as children:
            children.start("api", _api_command(listener), listener.fileno())
            if worker:
                children.start("worker", [sys.executable, "-m", "workers.embedded"])
            _await_ready(url, children, stop)
            with _published(settings.home / "url", url):
                _announce(url, settings, worker, new_key)
                while not stop.wait(0.25):
                    children.check()
            say("stopping; a running job writes a checkpoint first. Ctrl-C again ends at once", style="yellow")


@contextmanager
def _published(path: Path, url: str) -> Iterator[None]:
    """Let SDK and CLI find the service while, and only while, it is up."""
    _write_private(path, url)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _checkout() -> Path:
    """The folder that holds api/ and workers/ beside foundry/."""
    root = Path(foundry.__file__).resolve().parents[1]
    if not (root / "api" / "wsgi.py").is_file() or not (root / "workers").is_dir():
        raise OperatorError(
            f"there are no api/ and workers/ in {root}: the service runs from a checkout or an image of Foundry. "
            "Clone the repository and install it with: pip install -e '.[server,engine,export]'; or use a service "
            "elsewhere: set FOUNDRY_URL and FOUNDRY_KEY"
        )
    return root


def _api_command(listener: socket.socket) -> list[str]:
    return [
        sys.executable, "-m", "gunicorn", "--config", "python:api.gunicorn_conf",
        "--bind", f"fd://{listener.fileno()}", "api.wsgi:app",
    ]  # fmt: skip


def _environment(settings: Settings) -> dict[str, str]:
    """What the children get: our environment, with every path absolute because they work in another folder."""
    url = settings.database_url
    if url.startswith("sqlite:///"):
        url = f"sqlite:///{Path(url.removeprefix('sqlite:///')).absolute()}"
    absolute = {
        "FOUNDRY_HOME": settings.home, "FOUNDRY_ARTIFACTS": settings.artifacts, "FOUNDRY_WORK": settings.work,
        "FOUNDRY_SIGNING_KEY": settings.signing_key,
        "FOUNDRY_TEACHER_ROOTS": os.pathsep.join(map(str, settings.teacher_roots)), "FOUNDRY_DATABASE_URL": url,
    }  # fmt: skip
    return {**os.environ, **{name: str(value) for name, value in absolute.items()}}


class _Children:
    """The API and the worker. Leaving the block stops what still runs."""

    def __init__(self, settings: Settings, root: Path, foreground: bool) -> None:
        self._settings = settings
        self._logs = None if foreground else settings.home / "logs"
        self._environment = _environment(settings)
        self._root = root  # their working directory: api/ and workers/ are found there before anywhere else
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        if self._logs:
            self._logs.mkdir(exist_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], *descriptors: int) -> None:
        grace_s = str(self._settings.stop_grace_s + 5)
        tethered = [sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")), grace_s, *command]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log(name).open("wb")) if self._logs else None
            self._running[name] = subprocess.Popen(
                tethered, stdin=subprocess.PIPE, stdout=log, stderr=log and subprocess.STDOUT,
                env=self._environment, cwd=self._root, pass_fds=descriptors, start_new_session=True,
            )  # fmt: skip

    def check(self) -> None:
        """Raise `OperatorError` with the end of its log when a child has ended."""
        for name, process in self._running.items():
            if (status := process.poll()) is not None:
                raise OperatorError(
                    f"the {name} ended by itself with status {status}; all is stopped.{self._tail(name)}"
                )

    def stop(self) -> None:
        """SIGTERM to all, then wait; SIGKILL to the process groups when the grace is over or the user insists."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self._settings.stop_grace_s + 10
        with contextlib.suppress(KeyboardInterrupt):
            while any(p.poll() is None for p in self._running.values()) and time.monotonic() < deadline:
                time.sleep(0.05)
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin:
                process.stdin.close()

    def _log(self, name: str) -> Path:
        assert self._logs is not None
        return self._logs / f"{name}.log"

    def _tail(self, name: str) -> str:
        if not self._logs:
            return " Its log stands above"
        lines = self._log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join((f" The end of {self._log(name)}:", *(f"  {line}" for line in lines)))


def _prepare(settings: Settings) -> bool:
    """Bring the database up to date and make sure that home/key opens it; whether a new key was written."""
    database = Database(settings.database_url)
    try:
        database.upgrade()
        keys = Keys(database, read_or_make_secret(settings.home / "secret"))
        path = settings.home / "key"
        if path.exists():
            with contextlib.suppress(Unauthorized):
                keys.authenticate(path.read_text(encoding="utf-8").strip())
                return False
        _, plaintext = keys.create(keys.ensure_default_project(), "foundry up", frozenset(Scope))
        _write_private(path, plaintext)
        return True
    finally:
        database.close()


def _announce(url: str, settings: Settings, worker: bool, new_key: bool) -> None:
    lines = [
        f"Foundry is up at {url}  (console for browsers; API description: {url}/docs)",
        f"  key       {settings.home / 'key'}{'  (made just now)' if new_key else ''}",
        f"  data      {settings.home}",
        f"  teachers  from {', '.join(map(str, dict.fromkeys(settings.teacher_roots)))}"
        + (", and from the model hub" if settings.hub_allowed else ""),
        f"  worker    {'one' if worker else 'none: jobs wait until one is started'}",
        "Next, in another terminal:",
        *([f"  export FOUNDRY_HOME={settings.home}"] if settings.home != Path("~/.foundry").expanduser() else []),
        "  foundry submit spec.yaml    (foundry plan, foundry targets, foundry --help)",
        "Ctrl-C stops it; jobs go on from their last checkpoint when it is started again.",
    ]
    print("\n".join(lines), flush=True)


def _await_ready(url: str, children: _Children, stop: threading.Event) -> None:
    deadline = time.monotonic() + _READY_S
    while not stop.wait(0.1):
        children.check()
        with contextlib.suppress(OSError, urllib.error.URLError):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine
            with opener.open(f"{url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        if time.monotonic() > deadline:
            raise OperatorError(
                f"{url}/readyz did not say that it is ready within {_READY_S:.0f} s.{children._tail('api')}"
            )


@contextmanager
def _only_service_in(home: Path) -> Iterator[None]:
    lock = os.open(home / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            url = (
                (home / "url").read_text(encoding="utf-8").strip()
                if (home / "url").exists()
                else "an address of its own"
            )
            raise StateConflict(
                f"a service is already up in {home}, at {url}; use it, stop it first, or start another with --home DIR"
            ) from error
        yield
    finally:
        os.close(lock)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event; a second interrupts whatever is waited for."""
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_private(path: Path, text: str) -> None:
    """A file that only its owner can read, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(os.open(aside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text + "\n")
    aside.replace(path)
