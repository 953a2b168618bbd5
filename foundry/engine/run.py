"""The process of a job or an evaluation: `python -m foundry.engine.run WORKSPACE`.

It reads a workspace, speaks `RunEvent` as JSON lines on standard output, and tells its end by the exit status
(`ExitCode`). SIGTERM, or the end of standard input, which means that the supervisor is gone, asks it to write a
checkpoint and stop. It knows no database, no queue and no network but the model hub.
"""

import errno
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

from transformers.utils.logging import disable_progress_bar

from foundry.engine import pipeline
from foundry.engine.context import (
    RunContext,
    Stopped,
    allowed_by,
    choose_device,
    choose_dtype,
    count_accelerators,
)
from foundry.engine.distill.memory import is_out_of_memory
from foundry.engine.evaluate.alone import evaluate_alone, is_evaluation
from foundry.engine.workspace import Workspace
from foundry.errors import FoundryError, OutOfMemory, StorageFull, UserError
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, ExitCode, RunEvent

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BREATH_S = 60.0


class Voice:
    """The pipe to the supervisor: an event is a line; an empty line says that work goes on."""

    def __init__(self, lines: IO[str], asked: threading.Event) -> None:
        """`asked` is set when nobody listens any more."""
        self._lines, self._asked = lines, asked
        self._said_at = time.monotonic()

    def emit(self, event: RunEvent) -> None:
        """Say one event."""
        self._say(event.model_dump_json())

    def breathe(self, every_s: float = _BREATH_S) -> None:
        """Say that work goes on, where nothing was said for so long. Cheap."""
        if time.monotonic() - self._said_at >= every_s:
            self._say("")

    def _say(self, line: str) -> None:
        self._said_at = time.monotonic()
        try:
            print(line, file=self._lines, flush=True)
        except BrokenPipeError:
            self._asked.set()


def main(root: Path, work: Callable[[JobSpec, Workspace, RunContext], None] = pipeline.run) -> int:
    """Run the workspace to its end; return the exit status."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which then sends SIGTERM
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the supervisor asks a silent run where it hangs
    threading.Thread(target=_stop_with_parent, args=(asked,), daemon=True).start()
    disable_progress_bar()  # it would fill the last lines of standard error, which say why a run has failed

    voice = Voice(_take_stdout(), asked)
    device = choose_device()
    workspace = Workspace(root)
    try:
        alone = is_evaluation(root)
        context = RunContext(
            emit=voice.emit,
            should_stop=asked.is_set,
            alive=voice.breathe,
            device=device,
            dtype=choose_dtype(device),
            seed=0 if alone else workspace.spec.seed,
            micro_batch_divisor=1 if alone else workspace.inputs.micro_batch_divisor,
            accelerators=count_accelerators(device),
            **allowed_by(os.environ),
        )
        if alone:
            evaluate_alone(root, context)
        else:
            work(workspace.spec, workspace, context)
    except Stopped:
        return ExitCode.STOPPED
    except BaseException as error:
        traceback.print_exc()
        voice.emit(_last_words(error))
        return _exit_code(error)
    return ExitCode.DONE


def _take_stdout() -> IO[str]:
    """Keep standard output for events alone: whatever a library prints goes to standard error."""
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return lines


def _stop_with_parent(asked: threading.Event) -> None:
    # Not sys.stdin.read(): a daemon thread that holds its lock makes the interpreter abort when it exits.
    while os.read(0, 4096):
        pass
    asked.set()


def _last_words(error: BaseException) -> RunEvent:
    if isinstance(error, FoundryError):
        data = {"code": error.code, "pointer": error.pointer}
        return RunEvent(type=EventType.LOG, level="error", message=error.message, data=data)
    message = f"{type(error).__name__}: {error}"
    return RunEvent(type=EventType.LOG, level="error", message=message, data={"code": _code(error), "pointer": ""})


def _code(error: BaseException) -> str:
    match _exit_code(error):
        case ExitCode.OUT_OF_MEMORY:
            return "out_of_memory"
        case ExitCode.STORAGE:
            return "storage_full"
        case _:
            return "io_error" if isinstance(error, OSError) else "crashed"


def _exit_code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return ExitCode.USER_ERROR
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return ExitCode.OUT_OF_MEMORY
    if isinstance(error, StorageFull) or (isinstance(error, OSError) and error.errno in _FULL):
        return ExitCode.STORAGE
    return ExitCode.CRASHED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
