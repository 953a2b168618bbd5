"""Writes a checkpoint as one GGUF file, tensor by tensor, by the family table.

The type of every tensor comes from `foundry.spec.formats.gguf_type_of`, which the planner counts with: the bytes of the
tensors in the file are the bytes that the plan was made for.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from foundry.engine.export.quantize import quantize
from foundry.engine.export.vocabulary import Vocabulary
from foundry.engine.prune.slicer import Reader
from foundry.engine.workspace import sync
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.family import Tensor, Weight
from foundry.spec.formats import bytes_of, gguf_type_of

_ROPE_FACTORS = "rope_freqs.weight"
_ACTIVATION = "silu"


def write_gguf(checkpoint: Checkpoint, vocabulary: Vocabulary, path: Path, *, quantisation: str, name: str) -> None:
    """Write aside, flush, rename. Raises `ExportFailed` for a model that llama.cpp cannot express."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(aside, checkpoint.family.gguf_architecture)
    try:
        _write_metadata(writer, checkpoint, quantisation, name)
        vocabulary.write(writer)
        factors = _rope_factors(checkpoint)
        if factors is not None:
            writer.add_tensor_info(_ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for tensor in _tensors(checkpoint):
            _announce(writer, tensor, checkpoint, quantisation)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for data in _data(checkpoint, quantisation):
            writer.write_tensor_data(data)
        writer.close()
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        writer.close()
        aside.unlink(missing_ok=True)


def _write_metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, quantisation: str, name: str) -> None:
    config, shape = checkpoint.config, checkpoint.shape
    check_config(config)
    rope = _rope(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPE[quantisation]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_vocab_size(shape.vocab)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise `ExportFailed` for settings that llama.cpp would compute otherwise."""
    if (activation := config.get("hidden_act", _ACTIVATION)) != _ACTIVATION:
        raise ExportFailed(
            f"llama.cpp computes {_ACTIVATION} in this family; config.json says hidden_act {activation!r}"
        )
    _rope(config)


_FILE_TYPE = {
    "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q6_k": "MOSTLY_Q6_K", "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
}  # fmt: skip


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings in either spelling, with type and theta always there. Raises for types that are not written."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.pop("type", None)
    rope = {"rope_type": kind or "default", "rope_theta": config.get("rope_theta", 10_000.0), **given}
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise ExportFailed(
            f"rope scaling {rope['rope_type']!r} cannot be written to GGUF, only linear and llama3; ship safetensors"
        )
    return rope


def _rope_factors(checkpoint: Checkpoint) -> np.ndarray | None:
    """Llama 3.1's rope scaling as llama.cpp reads it: what each frequency is divided by, float32 [head_dim / 2].

    Long wavelengths are divided by `factor`, short ones are left, those between are blended.
    """
    rope = _rope(checkpoint.config)
    if rope["rope_type"] != "llama3":
        return None
    pairs = np.arange(0, checkpoint.shape.head_dim, 2) / checkpoint.shape.head_dim
    wavelengths = 2 * math.pi * rope["rope_theta"] ** pairs
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((rope["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    factors: np.ndarray = (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)
    return factors


def _tensors(checkpoint: Checkpoint) -> Iterator[Tensor]:
    return checkpoint.family.tensors(checkpoint.shape, checkpoint.present)


def _announce(writer: gguf.GGUFWriter, tensor: Tensor, checkpoint: Checkpoint, quantisation: str) -> None:
    kind = gguf_type_of(tensor, checkpoint.shape, quantisation)
    size = bytes_of(math.prod(tensor.size), kind)
    name = tensor.weight.gguf.format(layer=tensor.layer)
    writer.add_tensor_info(name, tensor.size, np.dtype(np.float32), size, gguf.GGMLQuantizationType[kind])


def _data(checkpoint: Checkpoint, quantisation: str) -> Iterator[np.ndarray]:
    """The bytes of every tensor in the order of `_tensors`; one is in memory at a time."""
    read = Reader(checkpoint, torch.device("cpu"))
    for tensor in _tensors(checkpoint):
        value = for_llamacpp(read(tensor.name), tensor.weight, checkpoint)
        try:
            yield quantize(value, gguf_type_of(tensor, checkpoint.shape, quantisation))
        except ExportFailed as error:
            raise ExportFailed(f"{tensor.name}: {error.message}") from error


def for_llamacpp(value: torch.Tensor, weight: Weight, checkpoint: Checkpoint) -> torch.Tensor:
    """A weight with its rows in llama.cpp's order: rotary pairs are neighbours there, half a head apart here."""
    if weight.gguf_permute:
        heads = getattr(checkpoint.shape, weight.gguf_permute)
        split = (heads, 2, checkpoint.shape.head_dim // 2, *value.shape[1:])
        value = value.reshape(split).transpose(1, 2).reshape(value.shape)
    return value.float() + weight.gguf_add if weight.gguf_add else value
