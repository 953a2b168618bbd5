"""The state of a training run on disk: tensors as safetensors, the rest as JSON, never a pickle.

Several processes write their shards by PyTorch's distributed checkpoint, which can read them on any number of others.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from foundry.engine.context import RunContext
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.parallel import ALONE, Ranks, own
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
    progress: dict[str, Any], context: RunContext, ranks: Ranks = ALONE,
) -> None:  # fmt: skip
    """Write every learner's state after `step` updates, and what else the loop must know to go on."""

    def write(folder: Path) -> None:
        if ranks.size > 1:
            _write_shards(learners, ranks.first_path(folder))
        else:
            for learner in learners:
                parts = {name: own(tensor) for name, tensor in learner.state().items()}
                write_tensors(parts, folder / f"{learner.name}.safetensors")
        said = {"digest": digest, "step": step, "progress": progress, "processes": ranks.size}
        write_json(folder / "state.json", said)

    if ranks.is_first:
        workspace.save_checkpoint(stage, step, write)
    else:
        _write_shards(learners, ranks.first_path(None))
    ranks.wait()
    context.report(EventType.CHECKPOINT, f"{stage}: checkpoint at step {step}", stage=stage, step=step)


def restore(
    workspace: Workspace, stage: StageName, learners: Sequence[Learner], digest: str, context: RunContext,
    ranks: Ranks = ALONE,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Put the learners where the newest intact checkpoint of this very run left them; (0, {}) when there is none."""
    folder = ranks.first_path(_newest(workspace, stage, digest, context) if ranks.is_first else None)
    if folder is None:
        return 0, {}
    state = read_json(folder / "state.json")
    step = int(state["step"])
    if state.get("processes", 1) > 1:
        for learner in learners:
            learner.begin(step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process: as meant
            load_shards(_shards(learners), storage_reader=HuggingFaceStorageReader(str(folder)))
        for learner in learners:
            learner.publish()
    else:
        for learner in learners:
            learner.restore(load_file(folder / f"{learner.name}.safetensors"), step)
    context.report(EventType.LOG, f"{stage}: resumed at step {step}", stage=stage, step=step)
    return step, dict(state["progress"])


def _newest(workspace: Workspace, stage: StageName, digest: str, context: RunContext) -> Path | None:
    for step, folder in workspace.checkpoints(stage):
        if read_json(folder / "state.json")["digest"] == digest:
            return folder
        message = f"{stage}: the checkpoint at step {step} belongs to another spec, data or student; it is not used"
        context.report(EventType.WARNING, message, level="warning", stage=stage, step=step)
    return None


def _write_shards(learners: Sequence[Learner], folder: Path | None) -> None:
    save_shards(_shards(learners), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _shards(learners: Sequence[Learner]) -> dict[str, Tensor]:
    """The state of all learners, each tensor as this process has it; what is read goes into its memory."""
    return {f"{learner.name}/{name}": tensor for learner in learners for name, tensor in learner.state().items()}
