"""`foundry run`: the stages of a job in this process, stopped by Ctrl-C and resumed by the same command."""

import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from foundry.cli.render import say
from foundry.client.home import home_folder
from foundry.client.progress import RunProgress
from foundry.engine.export.manifest import NAME, read_manifest
from foundry.engine.export.signature import KEY_FILE, SigningKey
from foundry.engine.workspace import Inputs, Workspace
from foundry.errors import InvalidSpec, MissingExtra, OutOfMemory, StateConflict, UserError
from foundry.intake.checkpoint import check_tokenizer, context_limit, open_checkpoint
from foundry.intake.documents import summarise
from foundry.spec.estimate import estimate
from foundry.spec.job import JobSpec, is_hub_id
from foundry.spec.variant import VariantManifest

if TYPE_CHECKING:
    import torch

    from foundry.engine.context import RunContext

_INTERRUPTED = 130


def run_here(spec: JobSpec, folder: Path, device: str | None) -> list[tuple[Path, VariantManifest]]:
    """Carry out a spec in `folder`, or what is left of it; returns each variant's folder and manifest.

    Raises what the service would refuse the spec with, `StateConflict` when the folder belongs to another spec, and
    `MissingExtra` without torch. Ends the program with 130 when it was interrupted.
    """
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingExtra(module, "engine")
    _refuse_strangers(folder)
    inputs = check(spec)
    with _only_run_in(folder):
        workspace = open_workspace(folder, spec, inputs)
        with RunProgress() as show, interruptible() as should_stop:
            from foundry.engine.context import (
                RunContext,
                allowed_by,
                choose_dtype,
                count_accelerators,
            )  # late: torch takes seconds to import

            chosen = pick_device(device)
            context = RunContext(
                emit=show,
                should_stop=should_stop,
                device=chosen,
                dtype=choose_dtype(chosen),
                seed=spec.seed,
                accelerators=count_accelerators(chosen),
                **allowed_by(os.environ),
            )
            _carry_out(spec, workspace, context)
    key = SigningKey.read_or_make(home_folder() / KEY_FILE)
    with (folder / "result.json").open(encoding="utf-8") as file:
        variants = [folder / relative for relative in json.load(file)["variants"]]
    for variant in variants:
        key.sign(variant / NAME)
    return [(variant, read_manifest(variant)) for variant in variants]


def check(spec: JobSpec) -> Inputs:
    """What the service checks before it takes a job: teacher, budgets, and every line of the data."""
    teacher = Path(spec.teacher)
    if teacher.exists() or not is_hub_id(spec.teacher):
        checkpoint = open_checkpoint(teacher)
        check_tokenizer(teacher)
        estimate(spec, checkpoint.family, checkpoint.shape, checkpoint.present, context_limit(checkpoint.config))
    summary = summarise(Path(spec.data))
    return Inputs(teacher=spec.teacher, data=spec.data, data_sha256=summary.sha256)


def open_workspace(folder: Path, spec: JobSpec, inputs: Inputs) -> Workspace:
    """The run's folder, new or begun; raise `StateConflict` when it belongs to something else."""
    if not (folder / "spec.json").exists():
        return Workspace.create(folder, spec, inputs)
    begun = Workspace(folder)
    try:
        same_inputs = begun.inputs == inputs
        changed = [name for name in JobSpec.model_fields if getattr(begun.spec, name) != getattr(spec, name)]
    except (InvalidSpec, OSError, ValueError) as error:
        raise StateConflict(f"{folder} was begun by another version of Foundry; name another folder with -o") from error
    if not same_inputs and not changed:
        changed = ["data"]
    if changed:
        raise StateConflict(
            f"{folder} belongs to another spec ({', '.join(changed)} changed since); "
            "undo the change to go on there, or name another folder with -o",
            pointer=f"/{changed[0]}",
        )
    return begun


def _refuse_strangers(folder: Path) -> None:
    """A run writes into a folder of its own. Hidden files are left by file managers, inputs.json alone by a crash."""
    if not folder.is_dir() or (folder / "spec.json").exists():
        return
    if strangers := sorted(
        path.name for path in folder.iterdir() if path.name[0] != "." and path.name != "inputs.json"
    ):
        held = ", ".join(strangers[:3])
        raise StateConflict(f"{folder} holds other things ({held}); name a new or empty folder with -o")


def _carry_out(spec: JobSpec, workspace: Workspace, context: "RunContext") -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from foundry.engine import pipeline
    from foundry.engine.context import Stopped

    disable_progress_bar()  # theirs would be drawn over ours
    try:
        pipeline.run(spec, workspace, context)
    except Stopped:
        say("Stopped with a checkpoint. Run the same command again to go on.", style="yellow")
        raise typer.Exit(_INTERRUPTED) from None
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(
            f"out of memory on {context.device}: lower distill.batch_tokens or distill.sequence_tokens in another "
            "folder, or run the same command on a larger machine, which goes on"
        ) from error


def pick_device(name: str | None) -> "torch.device":
    """The device of that name, or the best there is; raise `UserError` when torch does not find it."""
    import torch

    from foundry.engine.context import choose_device

    if name is None:
        return choose_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: torch knows no such device; give cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no CUDA GPU here; give --device cpu")
    return device


@contextmanager
def _only_run_in(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; two runs in one folder would write over each other."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateConflict(f"another `foundry run` is at work in {folder}; wait for it or name another") from error
        yield
    finally:
        os.close(lock)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks the run to stop at its next step; a second one ends it at once."""
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("Stopping at the next step, with a checkpoint; once more ends at once.", style="yellow")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
