"""Asks a runtime in a process of its own, so that a crash, a leak or a library's state stays there."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Protocol

from foundry.engine.export.runtime import Answers, Questions, parse_answers
from foundry.engine.stopped import Stopped
from foundry.errors import ExportFailed

LLAMACPP = "foundry.engine.export.llamacpp"
ONNX = "foundry.engine.export.genai"
TRANSFORMERS = "foundry.engine.export.plain"
_TIMEOUT_S = 2 * 3600.0
_POLL_S = 0.1
_LAST_LINES = 4
_TOLD_TO_END = (-signal.SIGTERM, -signal.SIGINT)
"""A supervisor, or a terminal, signals the whole process group: the runtime is then not at fault."""


class Ask(Protocol):
    """Puts questions to a runtime, named by the module that answers them."""

    def __call__(self, module: str, questions: Questions, *, should_stop: Callable[[], bool]) -> Answers:
        """Raises `ExportFailed` with the runtime's own words, and `Stopped`."""


def ask(
    module: str, questions: Questions, *, should_stop: Callable[[], bool] = lambda: False, timeout_s: float = _TIMEOUT_S
) -> Answers:
    """Put the questions to a runtime in a fresh process.

    Raises `ExportFailed` with the runtime's own last words when it fails or is not done in time, and `Stopped`.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment = os.environ | quiet | {"OMP_NUM_THREADS": str(questions.threads)}
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
        asked.write(json.dumps(asdict(questions)).encode())
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=asked, stdout=said, stderr=complaints, env=environment
        )
        try:
            status = _wait(process, should_stop, timeout_s)
        finally:
            process.kill()
            process.wait()
        if status != 0:
            if should_stop() or status in _TOLD_TO_END:
                raise Stopped
            raise ExportFailed(f"{Path(questions.model).name}: {_reason(status, complaints)}")
        said.seek(0)
        return parse_answers(json.load(said))


def _wait(process: subprocess.Popen[bytes], should_stop: Callable[[], bool], timeout_s: float) -> int | None:
    """The exit status; None when time ran out."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            return process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if should_stop():
                raise Stopped from None
    return None


def _reason(status: int | None, complaints: IO[bytes]) -> str:
    if status is None:
        return "the runtime did not answer in time"
    if status == -signal.SIGKILL:
        return "the runtime was killed by the system, most likely for want of memory"
    complaints.seek(0)
    lines = [line for line in complaints.read().decode(errors="replace").splitlines() if line.strip()]
    return "the runtime refused it: " + (" | ".join(lines[-_LAST_LINES:]) or f"exit status {status}")
