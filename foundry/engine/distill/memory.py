"""How many rows fit into memory at once, decided from the machine's size before the first step.

The total memory decides, not what is free at the moment: a resumed run must add up its gradients in the same order.
"""

import resource
import sys
from collections.abc import Sequence

import psutil
import torch
from transformers import PreTrainedModel

from foundry.spec.family import family_of
from foundry.spec.weights import Shape

_ACTIVATIONS_SHARE = 0.25
"""Of the memory, for what a micro-batch keeps for its backward pass; weights and moments take the rest."""
_LARGEST_MICRO_TOKENS = 8192
"""Beyond this a larger micro-batch is no faster."""


def micro_batch_rows(models: Sequence[PreTrainedModel], sequence_tokens: int, device: torch.device) -> int:
    """Rows whose activations fit; at least 1. Turns on gradient checkpointing in models of which not even one row fits.

    Students run one after another, so the largest decides.
    """
    budget = _ACTIVATIONS_SHARE * total_bytes(device)
    rows = max(1, _LARGEST_MICRO_TOKENS // sequence_tokens)
    for model in models:
        row_bytes = sequence_tokens * _activation_bytes(_shape_of(model))
        if row_bytes > budget:
            checkpoint_activations(model)
        rows = max(1, min(rows, int(budget // row_bytes)))
    return rows


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep the input of every layer only and repeat its forward pass in the backward pass: same bits, less speed."""
    # transformers 5.23 renamed the method and warns about the older name; 5.3 knows only that.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    # The reentrant kind needs inputs with gradients, which a frozen embedding does not give.
    enable({"use_reentrant": False})


def _activation_bytes(shape: Shape) -> int:
    """Bytes kept for the backward pass per token, about: 14 hidden, 6 attention and 5 ffn values of 4 bytes a layer."""
    ffn = shape.ffn * max(1, shape.experts_per_token)
    return 4 * shape.layers * (14 * shape.hidden + 6 * shape.heads * shape.head_dim + 5 * ffn)


def _shape_of(model: PreTrainedModel) -> Shape:
    config = model.config.to_dict()
    return family_of(config).shape_of(config)


def total_bytes(device: torch.device) -> int:
    """Memory of the accelerator, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


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
