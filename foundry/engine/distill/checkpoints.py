"""The state of a training run on disk: tensors as safetensors, the rest as JSON, never a pickle."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from foundry.engine.context import RunContext
from foundry.engine.distill.learner import Learner
from foundry.engine.tensors import write_tensors
from foundry.engine.workspace import Workspace, read_json, write_json
from foundry.spec.lifecycle import EventType, StageName

_FORMAT = 2
"""Counts up when checkpoints of older code can no longer be read."""


def digest_of(**parts: Any) -> str:
    """One digest over everything a run depends on; a checkpoint with another digest is not its own."""
    parts["format"] = _FORMAT
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def save(
    workspace: Workspace, stage: StageName, step: int, learners: Sequence[Learner], digest: str,
    progress: dict[str, Any], context: RunContext,
) -> None:  # fmt: skip
    """Write every learner's state after `step` updates, and what else the loop must know to go on."""

    def write(folder: Path) -> None:
        for learner in learners:
            write_tensors(learner.state(), folder / f"{learner.name}.safetensors")
        write_json(folder / "state.json", {"digest": digest, "step": step, "progress": progress})

    workspace.save_checkpoint(stage, step, write)
    context.report(EventType.CHECKPOINT, f"{stage}: checkpoint at step {step}", stage=stage, step=step)


def restore(
    workspace: Workspace, stage: StageName, learners: Sequence[Learner], digest: str, context: RunContext
) -> tuple[int, dict[str, Any]]:
    """Put the learners where the newest intact checkpoint of this very run left them; (0, {}) when there is none."""
    for step, folder in workspace.checkpoints(stage):
        state = read_json(folder / "state.json")
        if state["digest"] != digest:
            message = f"{stage}: the checkpoint at step {step} belongs to another spec, data or student; it is not used"
            context.report(EventType.WARNING, message, level="warning", stage=stage, step=step)
            continue
        for learner in learners:
            learner.restore(load_file(folder / f"{learner.name}.safetensors"), step)
        context.report(EventType.LOG, f"{stage}: resumed at step {step}", stage=stage, step=step)
        return step, dict(state["progress"])
    return 0, {}
