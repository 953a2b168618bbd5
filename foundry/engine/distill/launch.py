"""Starts one process for each accelerator by torchrun, and passes on what they say."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from queue import Empty, Queue

import torch
from pydantic import ValidationError

from foundry import errors
from foundry.engine.context import RunContext, Stopped
from foundry.engine.workspace import Workspace
from foundry.errors import FieldProblem, FoundryError, InvalidSpec, OperatorError, OutOfMemory
from foundry.spec.lifecycle import EventType, RunEvent

_LISTEN_S = 0.2
_CRASHED = "crashed"
_ALLOCATORS = ("OutOfMemoryError", "MemoryError")
"""What an allocator raises where the loop does not catch it: while a model is loaded, or at a look."""


def launch(workspace: Workspace, context: RunContext) -> None:
    """Distil the workspace on `context.accelerators` devices; a process that runs out of memory starts all again with
    half of the micro-batch, from the newest checkpoint.

    Raises what the processes raised, `Stopped` when they wrote a checkpoint and ended because they were asked to.
    """
    while True:
        try:
            _run(workspace, context)
            return
        except OutOfMemory as error:
            if not workspace.halve_micro_batch():
                raise
            message = f"{error.message}; starting again with {workspace.micro_batch_cap} at a time"
            context.report(EventType.WARNING, message, level="warning", stage="distill")


def _run(workspace: Workspace, context: RunContext) -> None:
    if context.device.type == "cuda":
        torch.cuda.empty_cache()  # they need what the stages before have left reserved
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={context.accelerators}",
        "-m", "foundry.engine.distill.rank", str(workspace.root), str(context.dtype).removeprefix("torch."),
    ]  # fmt: skip
    message = f"distill: {context.accelerators} processes, one for each accelerator"
    context.report(EventType.LOG, message, stage="distill", processes=context.accelerators)
    failures: list[RunEvent] = []
    # The end of their standard input asks them to stop; it comes too when this process dies.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as processes:
        assert processes.stdin is not None
        for event in _heard(processes):
            if context.should_stop() and not processes.stdin.closed:
                processes.stdin.close()
            if event is not None and event.level == "error" and "code" in event.data:
                failures.append(event)
            elif event is not None:
                context.emit(event)
    if workspace.is_done("distill"):
        return
    if failures:
        raise error_of(failures)
    if processes.returncode == 0:
        raise Stopped
    raise OperatorError(f"distill: the processes ended with status {processes.returncode}; standard error says why")


def _heard(processes: "subprocess.Popen[bytes]") -> Iterator[RunEvent | None]:
    """What they say, and None now and then, until they have ended."""
    said: Queue[bytes | None] = Queue()

    def read() -> None:
        assert processes.stdout is not None
        for line in processes.stdout:
            said.put(line)
        said.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = said.get(timeout=_LISTEN_S)
        except Empty:
            yield None
            continue
        if line is None:
            return
        try:
            yield RunEvent.model_validate_json(line)
        except ValidationError:
            continue  # torchrun's own words


def error_of(failures: Sequence[RunEvent]) -> FoundryError:
    """The cause: when one process ends, the others break off with errors of the network."""
    causes = (event for event in failures if event.data["code"] != _CRASHED or event.message.startswith(_ALLOCATORS))
    event = next(causes, failures[0])
    if event.message.startswith(_ALLOCATORS):
        return OutOfMemory(event.message)
    code, pointer = event.data["code"], str(event.data.get("pointer", ""))
    if code == InvalidSpec.code:
        pointer, _, detail = event.message.partition(": ")
        return InvalidSpec([FieldProblem(pointer=pointer, code=code, detail=detail)])
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FoundryError))
    return next((kind for kind in kinds if kind.code == code), OperatorError)(event.message, pointer=pointer)
