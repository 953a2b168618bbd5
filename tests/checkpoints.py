"""Checkpoints written byte by byte, so that tests can make headers that lie. No torch: the API's tests use them too."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundry.spec.family import families

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32,
    "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 96,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip

Sizes = dict[str, tuple[int, ...]]


def sizes_of(config: Mapping[str, Any] = LLAMA, present: frozenset[str] = frozenset()) -> Sizes:
    """Every tensor of a Llama with this config, by the family table."""
    family = families()["llama"]
    return {tensor.name: tensor.size for tensor in family.tensors(family.shape_of(config), present)}


def header_of(sizes: Sizes, dtype: str = "BF16") -> dict[str, Any]:
    """The honest header of a file that holds these tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in sizes.items():
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": dtype, "shape": list(size), "data_offsets": [start, end]}
    return header


def write_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    """A file of the safetensors layout with any header, any length field and any data."""
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


def write_tensors(path: Path, sizes: Sizes) -> Path:
    """An honest file of zeros."""
    data = bytes(sum(2 * math.prod(size) for size in sizes.values()))
    return write_raw(path, json.dumps(header_of(sizes)).encode(), data)


def write_config(folder: Path, config: Mapping[str, Any] = LLAMA) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(folder: Path, config: Mapping[str, Any] = LLAMA, sizes: Sizes | None = None) -> Path:
    """config.json, tokenizer.json and one file of weights: by default exactly what the config promises."""
    write_config(folder, config)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')
    write_tensors(folder / "model.safetensors", sizes_of(config) if sizes is None else sizes)
    return folder


def write_sharded(folder: Path, shards: Mapping[str, Sizes], weight_map: Mapping[str, str] | None = None) -> Path:
    """config.json, shards, and an index: by default the honest one."""
    write_config(folder)
    for name, sizes in shards.items():
        write_tensors(folder / name, sizes)
    honest = {tensor: shard for shard, sizes in shards.items() for tensor in sizes}
    index = {"metadata": {}, "weight_map": honest if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def halves(sizes: Sizes) -> tuple[Sizes, Sizes]:
    """The same tensors in two shards."""
    names = list(sizes)
    middle = len(names) // 2
    return {n: sizes[n] for n in names[:middle]}, {n: sizes[n] for n in names[middle:]}
