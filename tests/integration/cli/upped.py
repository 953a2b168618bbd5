"""`foundry up` as a process of its own, with a home folder of the test's own and any free port."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from foundry.client.client import Foundry


class Service:
    """A running `foundry up`."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes], output: Path) -> None:
        self.home, self.process, self._output = home, process, output

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._output.read_text()

    def children(self) -> list[psutil.Process]:
        """Every process below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self) -> Foundry:
        """A client that knows its address and key."""
        return Foundry((self.home / "url").read_text().strip(), (self.home / "key").read_text().strip())


def command(*arguments: str) -> list[str]:
    """The `foundry` command of this environment."""
    return [sys.executable, "-m", "foundry.cli", *arguments]


@contextmanager
def up(folder: Path, *options: str) -> Iterator[Service]:
    """Start it in `folder`, wait until it is ready, and leave nothing behind."""
    home, output = folder / "home", folder / "output"
    folder.mkdir(parents=True, exist_ok=True)
    (home / "url").unlink(missing_ok=True)  # one that was killed leaves it
    with output.open("wb") as out:
        process = subprocess.Popen(
            command("up", "--home", str(home), "--port", "0", *options),
            stdout=out, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, "FOUNDRY_HOME": ""},
        )  # fmt: skip
    service = Service(home, process, output)
    children: list[psutil.Process] = []
    try:
        wait_for(lambda: (home / "url").exists() or process.poll() is not None)
        assert process.poll() is None, service.output
        children = service.children()
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
        for child in (c for c in children if c.is_running()):
            child.kill()


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Until the condition holds; fails the test otherwise."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
