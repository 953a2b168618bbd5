"""A teacher's folder, opened without running or unpickling anything in it: config, shape, place of each tensor."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import DamagedCheckpoint, TeacherNotFound, UnsafeCheckpoint, UnsupportedFamily
from foundry.intake.safetensors import TensorEntry, damaged, look_equal, read_header
from foundry.spec.family import Family, family_of
from foundry.spec.weights import Shape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CONFIG_BYTES = 2**20
_INDEX_BYTES = 32 * 2**20
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_IGNORED_BUFFER = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
"""Saved by old versions of transformers; computed from the config today."""
_LARGEST: Mapping[str, int] = {
    "layers": 1024, "hidden": 2**17, "ffn": 2**19, "heads": 2**12, "kv_heads": 2**12, "head_dim": 2**12, "vocab": 2**23,
}  # fmt: skip
"""Far above any model; a config that claims more would make us count for hours."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder whose config, headers and family table agree to the last tensor."""

    folder: Path
    config: Mapping[str, Any]
    """config.json without keys that begin with an underscore: those steer library internals."""
    family: Family
    shape: Shape
    present: frozenset[str]
    """The optional rows of the family table, with `{layer}`, that this checkpoint has."""
    tensors: Mapping[str, TensorEntry]
    """Every tensor of the family table by its full name; a tied head has no entry even where the file holds a copy."""


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a teacher's folder.

    Raises `TeacherNotFound`, `UnsafeCheckpoint` (pickles, code, links that leave the folder), `UnsupportedFamily` or
    `DamagedCheckpoint`; each with the pointer /teacher.
    """
    config, family, shape = open_config(folder)
    found = _all_tensors(folder)
    present = frozenset(w.name for w in family.weights if w.optional and _occurs(w.name, shape.layers, found))
    tensors = _match(family, shape, present, found)
    return Checkpoint(folder=folder, config=config, family=family, shape=shape, present=present, tensors=tensors)


def open_config(path: Path) -> tuple[dict[str, Any], Family, Shape]:
    """Config, family and shape from a folder or a bare config.json."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise TeacherNotFound(
            f"no teacher at {path}: give a folder with config.json and {SINGLE}, or ORG/NAME on the model hub",
            pointer="/teacher",
        ) from error
    folder, name = (path, "config.json") if stat.S_ISDIR(mode) else (path.parent, path.name)
    config = _read_json(_file(folder, name), _CONFIG_BYTES)
    _refuse_code(config)
    family = family_of(config)
    shape = family.shape_of(config)
    for axis, largest in _LARGEST.items():
        if getattr(shape, axis) > largest:
            raise DamagedCheckpoint(
                f"config.json: {family.config.get(axis, axis)} is {getattr(shape, axis)}, more than {largest}",
                pointer="/teacher",
            )
    return {key: value for key, value in config.items() if not key.startswith("_")}, family, shape


def context_limit(config: Mapping[str, Any]) -> int | None:
    """The longest sequence the model was made for, in tokens; None when its config does not say."""
    value = config.get("max_position_embeddings") or config.get("n_positions")
    return value if type(value) is int and value > 0 else None


def check_tokenizer(folder: Path) -> None:
    """Raise `DamagedCheckpoint` unless the folder holds a tokenizer that loads without conversion or code."""
    if not (folder / "tokenizer.json").exists():
        raise DamagedCheckpoint(
            f"{folder.name} holds no tokenizer.json. Save one with: "
            "AutoTokenizer.from_pretrained(model).save_pretrained(folder)",
            pointer="/teacher",
        )
    _read_json(_file(folder, "tokenizer.json"), 256 * 2**20)


def checkpoint_sha256(folder: Path) -> str:
    """Hex digest over name, size and digest of every weight file, by name."""
    digest = hashlib.sha256()
    for path in _weight_files(folder)[0]:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{path.stat().st_size}\0{content}\n".encode())
    return digest.hexdigest()


def _refuse_code(config: Mapping[str, Any]) -> None:
    if config.get("auto_map"):
        raise UnsafeCheckpoint(
            "config.json asks for the checkpoint's own code (auto_map), which Foundry never runs. "
            f"If the model computes exactly what {config.get('model_type')!r} does, remove auto_map from config.json",
            pointer="/teacher",
        )
    if config.get("quantization_config"):
        raise UnsupportedFamily(
            "config.json says that the weights are quantised (quantization_config); give the checkpoint from before "
            "quantisation, and let the export quantise the student",
            pointer="/teacher",
        )


def _match(
    family: Family, shape: Shape, present: frozenset[str], found: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry]:
    """The table's tensors with their entries; refuse what is missing, of another size, or left over."""
    tensors: dict[str, TensorEntry] = {}
    for tensor in family.tensors(shape, present):
        entry = found.get(tensor.name)
        if entry is None:
            raise DamagedCheckpoint(
                f"tensor {tensor.name!r} is missing; a {family.name} model of {shape.layers} layers has it",
                pointer="/teacher",
            )
        if entry.size != tensor.size:
            raise _wrong_size(entry, tensor.name, tensor.size)
        tensors[tensor.name] = entry
    spare = {name for name in found if name not in tensors and not _IGNORED_BUFFER.search(name)}
    if shape.tied and family.head in spare:
        # Some savers write the tied matrix twice. Where the two differ, transformers takes the head for one of its own.
        if found[family.head].size != (shape.vocab, shape.hidden):
            raise _wrong_size(found[family.head], family.head, (shape.vocab, shape.hidden))
        if not look_equal(found[family.head], found[family.embedding]):
            raise DamagedCheckpoint(
                f"config.json says that head and embedding are one (tie_word_embeddings), but {family.head!r} and "
                f"{family.embedding!r} differ in their numbers or types: set it to false if the head is its own, or "
                "leave the head's tensor out",
                pointer="/teacher",
            )
        spare.remove(family.head)
    if spare:
        raise DamagedCheckpoint(
            f"{len(spare)} tensors are not in the {family.name} family table, the first is {min(spare)!r}. "
            "A model with more parts than its family would lose them; merge adapters before you give it as a teacher",
            pointer="/teacher",
        )
    return tensors


def _wrong_size(entry: TensorEntry, name: str, expected: tuple[int, ...]) -> DamagedCheckpoint:
    return damaged(entry.file, f"tensor {name!r} has the size {entry.size}, config.json asks for {expected}")


def _occurs(name: str, layers: int, found: Mapping[str, TensorEntry]) -> bool:
    return any(name.format(layer=layer, expert=0) in found for layer in range(layers))


def _all_tensors(folder: Path) -> dict[str, TensorEntry]:
    """The tensors of all weight files; a name may stand in one file only, and where the index says."""
    found: dict[str, TensorEntry] = {}
    files, weight_map = _weight_files(folder)
    for path in files:
        for name, entry in read_header(path).items():
            if name in found:
                raise damaged(path, f"tensor {name!r} also stands in {found[name].file.name}")
            found[name] = entry
    if weight_map is not None:
        lie = {(name, entry.file.name) for name, entry in found.items()} ^ set(weight_map.items())
        if lie:
            raise damaged(folder / INDEX, f"tensor {min(lie)[0]!r} is not in the file that the index names")
    return found


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files that make up the model, by name, and the index where there are shards."""
    single, index = (folder / SINGLE).exists(), (folder / INDEX).exists()
    if single and index:
        raise damaged(
            folder / INDEX, f"{SINGLE} stands beside it, and only one of them can be the model; remove the other"
        )
    if index:
        weight_map = _weight_map(_file(folder, INDEX))
        return [_file(folder, name) for name in sorted(set(weight_map.values()))], weight_map
    if not single:
        raise _no_weights(folder)
    return [_file(folder, SINGLE)], None


def _no_weights(folder: Path) -> Exception:
    names = sorted(path.name for path in folder.iterdir())
    if pickled := [name for name in names if Path(name).suffix in _PICKLES]:
        return UnsafeCheckpoint(
            f"{pickled[0]}: pickled weights can run code when they are read and are refused. Where you trust the file, "
            "convert it with: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
            pointer="/teacher",
        )
    if "adapter_model.safetensors" in names:
        return DamagedCheckpoint(
            "the folder holds a LoRA adapter alone; merge it into its model first", pointer="/teacher"
        )
    return DamagedCheckpoint(
        f"{folder} holds neither {SINGLE} nor {INDEX}; save the model with: model.save_pretrained(folder)",
        pointer="/teacher",
    )


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = _read_json(path, _INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(path, "it has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UnsafeCheckpoint(
                f"{INDEX} names {shard!r:.80}, which is not a .safetensors file of this folder", pointer="/teacher"
            )
    return weight_map


def _file(folder: Path, name: str) -> Path:
    """A regular file of the folder. Links may not lead out of it, except into the blobs of the same hub cache entry.

    The hub's cache keeps `models--ORG--NAME/snapshots/REVISION/FILE` as links to `models--ORG--NAME/blobs/DIGEST`.
    """
    path, home = folder / name, folder.resolve()
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise DamagedCheckpoint(
            f"{folder} holds no {name}, or a link that leads nowhere", pointer="/teacher"
        ) from error
    allowed = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise UnsafeCheckpoint(f"{name} is a link that leaves its folder; copy the file instead", pointer="/teacher")
    if not real.is_file():
        raise UnsafeCheckpoint(f"{name} is not a regular file", pointer="/teacher")
    if not os.access(real, os.R_OK):
        raise TeacherNotFound(f"{path} may not be read by this process; change its permissions", pointer="/teacher")
    return path


def _read_json(path: Path, limit_bytes: int) -> dict[str, Any]:
    if path.stat().st_size > limit_bytes:
        raise damaged(path, f"it is larger than {limit_bytes} bytes")
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise damaged(path, "it is not a JSON object")
    return document
