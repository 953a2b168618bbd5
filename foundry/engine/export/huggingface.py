"""Writes the plain Hugging Face folder: the master artifact, which every other format is made from.

Weights are bfloat16 (float16 stays float16) or as a job says, the config is rebuilt from the family table, and names
are spelt so that transformers 4 and 5 both read them: version 4 takes a version-5 rope setting as absent without a
word, and does not know version 5's name of the tokenizer class.
"""

import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from foundry.engine.tensors import Entry, Reader, write_sharded
from foundry.engine.workspace import read_json, write_json
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.stages import Dtype

_GENERATION_KEYS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "max_new_tokens", "max_length",
)  # fmt: skip
_ALWAYS_SAID = (
    "hidden_act", "hidden_activation", "activation_function", "max_position_embeddings", "rms_norm_eps", "norm_epsilon",
    "layer_norm_eps", "layer_norm_epsilon",
)  # fmt: skip
"""What transformers would assume where the config is silent is written down: other runtimes assume other things."""
_TOKENIZER_KEYS = (
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token", "model_max_length",
    "clean_up_tokenization_spaces", "padding_side", "truncation_side", "model_input_names",
)  # fmt: skip


def shipped_dtype(checkpoint: Checkpoint, asked: Dtype | None = None) -> torch.dtype:
    """The 16-bit type that a checkpoint's weights are shipped in."""
    if asked is not None:
        return torch.float16 if asked == "float16" else torch.bfloat16
    return torch.float16 if {entry.dtype for entry in checkpoint.tensors.values()} == {"F16"} else torch.bfloat16


def write_huggingface(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: Dtype | None = None
) -> None:
    """Fill an existing folder; weights pass through one at a time, one tensor of them in memory.

    Raises `ExportFailed` where float16 cannot hold a weight or a weight is not finite.
    """
    shipped = shipped_dtype(checkpoint, dtype)
    places = checkpoint.family.tensors(checkpoint.shape, checkpoint.present)
    write_sharded(_weights(checkpoint, shipped), [Entry(place.name, shipped, place.size) for place in places], folder)
    write_json(folder / "config.json", _config(checkpoint, shipped))
    write_json(folder / "generation_config.json", _generation_config(checkpoint))
    write_tokenizer(tokenizer, folder)


def _weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    read = Reader(checkpoint, torch.device("cpu"))
    for tensor in checkpoint.family.tensors(checkpoint.shape, checkpoint.present):
        value = read(tensor.name)
        cast = value.to(dtype)
        if dtype == torch.float16 and not cast.isfinite().all():
            raise ExportFailed(_why_not_float16(tensor.name, value, cast))
        yield tensor.name, cast


def _why_not_float16(name: str, value: torch.Tensor, cast: torch.Tensor) -> str:
    lost = value.isfinite() & ~cast.isfinite()
    if not lost.any():
        return f"{name} holds NaN or infinity itself, which another dtype does not mend; run the job again"
    largest = float(value[lost].abs().max())
    return f"{name} holds {largest:,.0f}, and float16 ends at 65,504; leave export.dtype out for bfloat16"


def _config(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    """The family's config. `dtype` is version 5's key and `torch_dtype` version 4's."""
    name = str(dtype).removeprefix("torch.")
    config = checkpoint.family.config_for(checkpoint.config, checkpoint.shape) | {"dtype": name, "torch_dtype": name}
    assumed = AutoConfig.for_model(**deepcopy(config))  # it writes into the rope settings
    said = [key for key in _ALWAYS_SAID if key in checkpoint.family.config_keep and hasattr(assumed, key)]
    return {key: getattr(assumed, key) for key in said} | config


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that came with the checkpoint, without what a library version noted for itself."""
    path = checkpoint.folder / "generation_config.json"
    given: Mapping[str, Any] = read_json(path) if path.exists() else checkpoint.config
    return {key: given[key] for key in _GENERATION_KEYS if given.get(key) is not None}


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """tokenizer.json, its settings under the class name that both versions know, and the chat template."""
    with tempfile.TemporaryDirectory() as aside:
        tokenizer.save_pretrained(aside)
        for name in ("tokenizer.json", "chat_template.jinja"):
            if (Path(aside) / name).exists():
                (folder / name).write_bytes((Path(aside) / name).read_bytes())
        saved = read_json(Path(aside) / "tokenizer_config.json")
    settings = {key: saved[key] for key in _TOKENIZER_KEYS if key in saved}
    if extra := saved.get("extra_special_tokens") or saved.get("additional_special_tokens"):
        # Version 5 writes a list under a name that version 4 expects a mapping under; both read this one.
        settings["additional_special_tokens"] = extra
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
