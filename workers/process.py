"""The run's own process: spawned with a bare environment, heard line by line, stopped gently and then not."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import IO, Self

_ALLOWED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
        "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "FOUNDRY_THREADS", "FOUNDRY_BENCHMARKS", "FOUNDRY_ALLOW_CODE",
    }
)  # fmt: skip
_ALLOWED_PREFIXES = (
    "LC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_", "HSA_", "TORCH_",
    "PYTORCH_",
)  # fmt: skip
_ALLOWED_FOR_THE_HUB = frozenset(
    {
        "HF_TOKEN", "HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY",
        "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    }
)  # fmt: skip
_LINE_BYTES = 2**20
_TAIL_LINES, _TAIL_CHARACTERS = 60, 500
_READERS_S = 5.0


def run_environment(environment: Mapping[str, str], *, hub: bool) -> dict[str, str]:
    """What a run may see of our environment: no credentials of database or broker, the network only for the hub."""
    kept = {
        name: value
        for name, value in environment.items()
        if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES) or (hub and name in _ALLOWED_FOR_THE_HUB)
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | ({} if hub else {"HF_HUB_OFFLINE": "1"})


class RunProcess:
    """One run. It learns from the end of its standard input that we are gone, so it cannot outlive us for long."""

    def __init__(
        self, command: Sequence[str], workspace: Path, *, environment: Mapping[str, str], hear: Callable[[bytes], None]
    ) -> None:
        self._process = subprocess.Popen(
            [*command, str(workspace)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(environment), cwd=workspace.parent, start_new_session=True,
        )  # fmt: skip
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._heard_at = time.monotonic()
        self._readers = [
            self._reader(self._process.stdout, self._noting(hear)),
            self._reader(self._process.stderr, self._remember),
        ]

    def __enter__(self) -> Self:
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind: no process of its group, no thread, no pipe."""
        self.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(_READERS_S)  # a process that left the group may hold the pipe open
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe and not any(reader.is_alive() for reader in self._readers):
                    pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float) -> int | None:
        """The exit status (a negative number is a signal), or None when the run still goes on after that time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """Let the run write a checkpoint and end by itself."""
        self._process.terminate()

    def kill(self) -> None:
        """End the run and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def silent_s(self) -> float:
        """How long the run has said nothing on its standard output."""
        return time.monotonic() - self._heard_at

    def ask_where(self) -> None:
        """Let every thread of the run write its stack to standard error; one that cannot ends."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)

    def last_lines(self) -> tuple[str, ...]:
        """The end of its standard error."""
        return tuple(self._tail)

    def _noting(self, hear: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def note(line: bytes) -> None:
            self._heard_at = time.monotonic()
            if not line.isspace():  # an empty one says that the run is alive, and no more
                hear(line)

        return note

    def _reader(self, pipe: IO[bytes], take: Callable[[bytes], None]) -> threading.Thread:
        def read() -> None:
            while line := pipe.readline(_LINE_BYTES):
                take(line)

        return threading.Thread(target=copy_context().run, args=(read,), daemon=True)

    def _remember(self, line: bytes) -> None:
        if text := line.decode("utf-8", "replace").rstrip():
            self._tail.append(text[:_TAIL_CHARACTERS])
