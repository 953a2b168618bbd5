"""Writes a checkpoint as one GGUF file, tensor by tensor, by the family table.

The type of every tensor comes from `foundry.spec.formats.gguf_type_of`, which the planner counts with: the bytes of the
tensors in the file are the bytes that the plan was made for. What llama.cpp takes for granted in an architecture stands
in the family table too (`gguf_*`); a model that departs from it is refused here by the name of the setting.
"""

import math
import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig

from foundry.engine.export.activations import UNTUNED, Tuning
from foundry.engine.export.quantize import quantize
from foundry.engine.export.rope import Rope, read_rope
from foundry.engine.export.vocabulary import Vocabulary
from foundry.engine.tensors import Reader
from foundry.engine.workspace import sync
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.family import Family
from foundry.spec.formats import GgufType, bytes_of, gguf_type_of
from foundry.spec.weights import Shape, Tensor, Weight, parts

_ROPE_FACTORS = "rope_freqs.weight"
_SAFETENSORS = "ship safetensors instead"
_FILE_TYPE = {
    "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q6_k": "MOSTLY_Q6_K", "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M", "mixed": "GUESSED",
}  # fmt: skip


def write_gguf(
    checkpoint: Checkpoint, vocabulary: Vocabulary, path: Path, *, quantisation: str, name: str,
    tuning: Tuning = UNTUNED,
) -> None:  # fmt: skip
    """Write aside, flush, rename. Raises `ExportFailed` for a model that llama.cpp cannot express."""
    rope = check_config(checkpoint.config, checkpoint.family, checkpoint.shape)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(aside, checkpoint.family.gguf_architecture)
    try:
        _write_metadata(writer, checkpoint, rope, quantisation, name)
        vocabulary.write(writer)
        factors = rope.factors()
        if factors is not None:
            writer.add_tensor_info(_ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for tensor_name, tensors in stored(checkpoint):
            _announce(writer, tensor_name, tensors, _type_of(tensors[0], checkpoint, quantisation, tuning))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for data in _data(checkpoint, quantisation, tuning):
            writer.write_tensor_data(data)
        writer.close()
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        writer.close()
        aside.unlink(missing_ok=True)


def _write_metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, rope: Rope, quantisation: str, name: str) -> None:
    family, shape = checkpoint.family, checkpoint.shape
    config = _as_read(checkpoint.config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPE[quantisation]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(min(int(config[key]) for key in family.gguf_context if config.get(key)))
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_per_token)
        writer.add_expert_feed_forward_length(shape.ffn)
    if not shape.positions:
        rope.write(writer)
    if family.gguf_windows and (period := _window_period(config)) is not None:
        writer.add_sliding_window(int(_setting(config, "sliding_window")))
        writer.add_uint32(f"{family.gguf_architecture}.attention.sliding_window_pattern", period)
    for key, setting in family.gguf_settings.items():
        value = _setting(config, setting)
        add = writer.add_bool if isinstance(value, bool) else writer.add_float32
        add(f"{family.gguf_architecture}.{key}", value)
    writer.add_vocab_size(shape.vocab)


def check_config(config: Mapping[str, Any], family: Family, shape: Shape) -> Rope:
    """Raise `ExportFailed` for settings that llama.cpp would compute otherwise; give back how positions are turned."""
    if not family.gguf_architecture:
        raise ExportFailed(f"llama.cpp has no architecture that computes what {family.name} does; {_SAFETENSORS}")
    config = _as_read(config)
    _check_settings(config, family)
    _check_layers(config, family, shape)
    _check_shape(family, shape)
    return read_rope(config, family, shape)


def _as_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what its class assumes where it is silent: llama.cpp assumes other things."""
    assumed: dict[str, Any] = AutoConfig.for_model(**deepcopy(dict(config))).to_dict()
    return {**config, **assumed}


def _setting(config: Mapping[str, Any], path: str) -> Any:
    """A number or a switch of a config, `a.b` inside its setting a."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, (int, float)):
        raise ExportFailed(f"config.json: {path} is {value!r}; llama.cpp needs a number here; {_SAFETENSORS}")
    return value


def _check_settings(config: Mapping[str, Any], family: Family) -> None:
    for only in family.gguf_only:
        value = config.get(only.key)
        if value is not None and value not in only.values:
            known = " or ".join(repr(v) for v in only.values) or "none"
            raise ExportFailed(
                f"config.json says {only.key} {value!r}; llama.cpp's {family.gguf_architecture} knows {known}: "
                f"{only.reason}; {_SAFETENSORS}"
            )
    for setting in family.gguf_settings.values():
        _setting(config, setting)


def _check_layers(config: Mapping[str, Any], family: Family, shape: Shape) -> None:
    """Lists with an entry for each layer: llama.cpp knows patterns that repeat and nothing else."""
    for key, pattern in family.gguf_layers.items():
        expected = [pattern[layer % len(pattern)] for layer in range(shape.layers)]
        if (found := config.get(key)) is not None and list(found) != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), shape.layers)
            raise ExportFailed(
                f"config.json: {key} is not {list(pattern)} again and again, first in layer {at}; llama.cpp's "
                f"{family.gguf_architecture} computes no other; cut no layers for a GGUF, or {_SAFETENSORS}"
            )
    if family.gguf_windows and _window_period(config) is None:
        raise ExportFailed(
            f"config.json: layer_types is {''.join(kind[0] for kind in config['layer_types'])} (s: in a window, f: "
            f"full); llama.cpp's {family.gguf_architecture} knows windows with every n-th layer full, counted from the "
            f"first; cut no layers for a GGUF, or {_SAFETENSORS}"
        )


def _window_period(config: Mapping[str, Any]) -> int | None:
    """n where every n-th layer attends to everything and the others in a window; 0 where no layer does.

    None where the layers follow no such rule. llama.cpp fails where all of them attend to everything.
    """
    full = [kind == "full_attention" for kind in config["layer_types"]]
    periods = (*range(2, len(full) + 1), 0)
    fitting = (n for n in periods if full == [n > 0 and (layer + 1) % n == 0 for layer in range(len(full))])
    return next(fitting, None)


def _check_shape(family: Family, shape: Shape) -> None:
    if family.gguf_heads_fill_hidden and shape.heads * shape.head_dim != shape.hidden:
        raise ExportFailed(
            f"{shape.heads} heads of {shape.head_dim} do not fill a hidden size of {shape.hidden}; llama.cpp's "
            f"{family.gguf_architecture} takes hidden / heads for the size of a head; keep all heads and all of "
            f"hidden, or {_SAFETENSORS}"
        )
    nameless = [w.name for w in family.weights if not w.gguf and family.has(w, shape, frozenset())]
    if nameless:
        raise ExportFailed(
            f"{nameless[0]} has no place in llama.cpp's {family.gguf_architecture}, which takes the embedding for it: "
            f"tie_word_embeddings has to be true; {_SAFETENSORS}"
        )


def stored(checkpoint: Checkpoint) -> Iterator[tuple[str, list[Tensor]]]:
    """Every tensor of the file: its name, and what it is made of. The experts of a layer are one tensor."""
    tensors = checkpoint.family.tensors(checkpoint.shape, checkpoint.present)
    for name, group in groupby(tensors, key=lambda tensor: tensor.weight.gguf.format(layer=tensor.layer)):
        yield name, list(group)


def _type_of(tensor: Tensor, checkpoint: Checkpoint, quantisation: str, tuning: Tuning) -> GgufType:
    return gguf_type_of(tensor, checkpoint.shape, quantisation, tuning.mix)


def _announce(writer: gguf.GGUFWriter, name: str, tensors: list[Tensor], kind: GgufType) -> None:
    first = tensors[0]
    size = first.size[::-1] if first.weight.input_axis == 0 else first.size
    size = (len(tensors), *size) if first.weight.per_expert else size
    writer.add_tensor_info(
        name, size, np.dtype(np.float32), bytes_of(math.prod(size), kind), gguf.GGMLQuantizationType[kind]
    )


def _data(checkpoint: Checkpoint, quantisation: str, tuning: Tuning) -> Iterator[np.ndarray]:
    """The bytes of every tensor in the order of `stored`; one is in memory at a time, or one layer's experts."""
    read = Reader(checkpoint, torch.device("cpu"))

    def bytes_from(tensor: Tensor) -> np.ndarray:
        value = for_llamacpp(read(tensor.name), tensor.weight, checkpoint)
        heard = tuning.activations.get(tensor.name)
        try:
            return quantize(value, _type_of(tensor, checkpoint, quantisation, tuning), heard and heard.mean_C)
        except ExportFailed as error:
            raise ExportFailed(f"{tensor.name}: {error.message}") from error

    for _, tensors in stored(checkpoint):
        pieces = [bytes_from(tensor) for tensor in tensors]
        yield np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def for_llamacpp(value: torch.Tensor, weight: Weight, checkpoint: Checkpoint) -> torch.Tensor:
    """A weight as llama.cpp reads it; outputs are rows."""
    value = value.T if weight.input_axis == 0 else value
    if weight.gguf_add:
        value = value.float() + weight.gguf_add
    return rows_for_llamacpp(value, weight, checkpoint)


def rows_for_llamacpp(value: torch.Tensor, weight: Weight, checkpoint: Checkpoint) -> torch.Tensor:
    """The outputs of a weight in llama.cpp's order and scale; linear, so that a factor of the weight may stand for it.

    Rotary pairs are neighbours where the table says so, half a head apart here. All queries stand over all keys over
    all values, where GPT-NeoX has the three of each head together.
    """
    shape = checkpoint.shape
    if weight.gguf_permute:
        heads = getattr(shape, weight.gguf_permute)
        split = (heads, 2, shape.head_dim // 2, *value.shape[1:])
        value = value.reshape(split).transpose(1, 2).reshape(value.shape)
    rows = parts(weight.dims[0])
    if len(rows) == 1 and rows[0].times > 1:
        length = shape.unit(rows[0].axis)
        split = (-1, rows[0].times, length, *value.shape[1:])
        value = value.reshape(split).transpose(0, 1).reshape(value.shape)
    scale = checkpoint.family.gguf_query
    if scale and weight.role == scale.role:
        value = value.float() * _query_factor(checkpoint)
    return value


def _query_factor(checkpoint: Checkpoint) -> float:
    """What queries are multiplied by so that llama.cpp's division gives the scores that the config asks for."""
    shape, scale = checkpoint.shape, checkpoint.family.gguf_query
    assert scale is not None
    theirs = shape.hidden // shape.heads if shape.layers == scale.hidden_over_heads_at else shape.head_dim
    return math.sqrt(theirs / float(_setting(_as_read(checkpoint.config), scale.key)))
