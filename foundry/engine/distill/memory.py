"""How many rows fit into memory at once: what a row keeps for its backward pass is measured before the first step.

The machine's limit decides, not what is free at the moment: a resumed run must add up its gradients in the same order.
"""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.distill.learner import Learner
from foundry.engine.packed import Batch, Packed
from foundry.errors import OutOfMemory

_ACTIVATIONS_SHARE = 0.25
"""Of a machine's memory, for what a micro-batch keeps for its backward pass; weights and moments take the rest."""
_USABLE_SHARE = 0.8
"""Of what an accelerator has left for activations: the rest is for chunks of logits and for gaps between blocks."""
_LARGEST_MICRO_TOKENS = 8192
"""Beyond this a larger micro-batch is no faster."""
_ACTIVATIONS_ROOM = 0.08
"""Of an accelerator, that must be left beside weights, gradients and moments for anything to be learned."""
_HOST_SHARE = 0.9
"""Of a machine's memory, for masters and moments."""
_CGROUPS = Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """Memory for a training run, in bytes."""

    accelerator: int
    held: int
    """Of the accelerator's, by what lies there already."""
    host: int

    @classmethod
    def of(cls, device: torch.device) -> "Room":
        """Of an accelerator and the machine it is in."""
        return cls(total_bytes(device), torch.cuda.memory_allocated(device), total_bytes(torch.device("cpu")))


def moments_on_host(parameters: int, copies: int, room: Room, *, loaded: bool = False) -> bool:
    """Whether so many parameters, held in bfloat16 on an accelerator, must learn in the machine's memory.

    They do where float32 masters and moments do not fit beside what the accelerator holds already; `copies` are further
    float32 copies (an average, the best so far). The weights are yet to come unless they are `loaded`. Raises
    `OutOfMemory` where they fit into neither.
    """
    gradients, masters = parameters * ((0 if loaded else 2) + 4), parameters * (4 + 8 + 4 * copies)
    free = int((1 - _ACTIVATIONS_ROOM) * room.accelerator) - room.held
    if gradients + masters <= free:
        return False
    if gradients > free or masters > _HOST_SHARE * room.host:
        raise OutOfMemory(
            f"training {parameters:,} parameters takes {gradients / 1e9:,.1f} GB of the accelerator for weights and "
            f"gradients, where {max(0, free) / 1e9:,.1f} GB are free, and {masters / 1e9:,.1f} GB there or of the "
            f"machine's {room.host / 1e9:,.1f} GB for masters and moments; choose smaller or fewer targets, or a "
            "machine with more memory or more accelerators"
        )
    return True


def fits_in_shards(teacher: int, students: int, whole: int, state: int, accelerator: int, processes: int) -> bool:
    """Whether a teacher and students of so many parameters fit into so many accelerators of `accelerator` bytes each.

    A process has its part of the teacher in bfloat16, and of the students weights and gradients in float32 and `state`
    bytes of each parameter: moments and copies. Embedding, output matrix and its gradient of a student, of `whole`
    parameters each, it has whole at times.
    """
    parts = (2 * teacher + (4 + 4 + state) * students) // processes
    return parts + 3 * 4 * whole <= int((1 - _ACTIVATIONS_ROOM) * accelerator)


class Fit(NamedTuple):
    """How many rows fit, and why."""

    rows: int
    row_bytes: int
    """What one more row keeps for its backward pass, of the student that keeps most."""
    budget_bytes: int


def micro_batch_rows(
    learners: Sequence[Learner], text: Packed, device: torch.device, budget_bytes: int | None = None
) -> Fit:
    """Rows whose activations fit; at least 1. Turns on gradient checkpointing in models of which not even one row fits.

    Students run one after another, so the largest decides.
    """
    budget = _budget_bytes(learners, device) if budget_bytes is None else budget_bytes
    one, two = text.batch([0], device), text.batch([0, 0], device)
    largest = 1
    for learner in learners:
        row_bytes = _row_bytes(learner, one, two)
        if row_bytes is None or row_bytes > budget:
            checkpoint_activations(learner.model)
            row_bytes = _kept_bytes(learner, two) - _kept_bytes(learner, one)
        largest = max(largest, row_bytes)
    rows = max(1, min(_LARGEST_MICRO_TOKENS // text.sequence_tokens, budget // largest))
    return Fit(rows, largest, budget)


def _row_bytes(learner: Learner, one: Batch, two: Batch) -> int | None:
    """What one more row keeps; None where two do not even fit."""
    try:
        return _kept_bytes(learner, two) - _kept_bytes(learner, one)
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # out of the handler, which holds on to the failed pass
    return None


def _kept_bytes(learner: Learner, batch: Batch) -> int:
    """What a forward pass keeps for the backward pass, but for parameters: every block of memory once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would hold on to the graph that holds on to it, for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_BSH = learner.hidden(batch)
    del hidden_BSH  # the graph lives until here, so no block was counted in two places
    return sum(kept.values())


def _budget_bytes(learners: Sequence[Learner], device: torch.device) -> int:
    if device.type != "cuda":
        return int(_ACTIVATIONS_SHARE * total_bytes(device))
    to_come = sum(learner.state_bytes for learner in learners)
    return int(_USABLE_SHARE * max(0, total_bytes(device) - torch.cuda.memory_allocated(device) - to_come))


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep the input of every layer only and repeat its forward pass in the backward pass: same bits, less speed."""
    # transformers 5.23 renamed the method and warns about the older name; 5.3 knows only that.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    # The reentrant kind needs inputs with gradients, which a frozen embedding does not give.
    enable({"use_reentrant": False})


def total_bytes(device: torch.device) -> int:
    """Memory of the accelerator; else of the machine, or what its operator lets this process have of it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([int(psutil.virtual_memory().total), *_limits()])


def _limits(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Limits on this process's memory: of its control groups (both versions of them), and of its address space."""
    found = [limit for limit in (resource.getrlimit(resource.RLIMIT_AS)[0],) if limit != resource.RLIM_INFINITY]
    paths = [line.rpartition(":")[2].strip("/") for line in own.read_text().splitlines()] if own.exists() else []
    groups = {group for path in ["", *paths] for group in (Path(path), *Path(path).parents)}
    for group in groups:
        for file in (root / group / "memory.max", root / "memory" / group / "memory.limit_in_bytes"):
            try:
                found.append(int(file.read_text()))
            except (OSError, ValueError):  # "max" is no limit
                continue
    return found


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: on the accelerator, else by this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator said no; on a CPU torch says it with a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
