"""A family is a table: every weight's name, the axis of each of its dimensions, and where the config keeps each axis.

The unit of coupling is the axis: cutting ffn channel 7 removes row 7 of gate_proj and up_proj and column 7 of down_proj
in every layer, because all three dimensions carry the axis `ffn`. Nothing else in the house knows a weight by name.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from foundry.errors import DamagedCheckpoint, UnsupportedFamily
from foundry.spec.record import Record, parse

Dimension = Literal["vocab", "hidden", "ffn", "heads", "kv_heads", "head_dim"]
"""The axis of one dimension of a weight. `heads` and `kv_heads` dimensions are heads x head_dim long."""


class Shape(Record):
    """The size of a model along every axis."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Whether the output head shares its matrix with the embedding."""

    def length(self, dimension: Dimension) -> int:
        """How many rows or columns a dimension on this axis has."""
        if dimension in ("heads", "kv_heads"):
            return int(getattr(self, dimension)) * self.head_dim
        return int(getattr(self, dimension))

    def kv_cache_bytes(self, context_tokens: int, bytes_per_value: int = 2) -> int:
        """Keys and values of one sequence: 2 x layers x kv_heads x head_dim x context, in f16 by default."""
        return 2 * self.layers * self.kv_heads * self.head_dim * context_tokens * bytes_per_value


class Weight(Record):
    """One row of a family table. `{layer}` in a name stands for every layer."""

    name: str
    dims: tuple[Dimension, ...]
    role: str
    """What the weight does: embedding, head, norm, q, k, v, o, gate, up, down. Exporters choose precision by it."""
    gguf: str
    """Its name in a GGUF file."""
    optional: bool = False
    """Biases and the like: present in some members of the family only."""
    gguf_permute: Literal["heads", "kv_heads"] | None = None
    """llama.cpp's rotary layout interleaves the two halves of each head; rows are reordered on export."""
    gguf_add: float = 0.0
    """Added on export: families whose norm multiplies by (1 + weight) store weight, llama.cpp wants 1 + weight."""

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.name

    def exists_in(self, family: "Family", shape: Shape, present: frozenset[str]) -> bool:
        """Whether a model has this weight: a tied head has none of its own, an optional row must be `present`."""
        if shape.tied and self.name == family.head:
            return False
        return not self.optional or self.name in present


class Tensor(NamedTuple):
    """One tensor of a model: its full name, its row in the table, the layer it is in (0 outside), its size."""

    name: str
    weight: Weight
    layer: int
    size: tuple[int, ...]


class Family(Record):
    """Everything the house knows about models that share weight names."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` values of config.json that this table describes."""
    gguf_architecture: str
    config: Mapping[str, str]
    """Axis of `Shape` -> key of config.json."""
    config_keep: tuple[str, ...]
    """Other keys that are carried into a student's config; everything else is dropped."""
    rotatable: bool = False
    """Whether turning the residual stream changes nothing: RMS norms before every reader, none after a writer."""
    tied_by_default: bool = False
    """What an absent `tie_word_embeddings` means in this family's config class."""
    attention_norm: str
    ffn_norm: str
    final_norm: str
    embedding: str
    head: str
    weights: tuple[Weight, ...]

    @property
    def layer_module(self) -> str:
        """Where a decoder layer lives, for example `model.layers.{layer}`."""
        return self.attention_norm.split("{layer}")[0] + "{layer}"

    def row(self, role: str) -> Weight:
        """The matrix with this role (not its bias)."""
        return next(w for w in self.weights if w.role == role and len(w.dims) == 2)

    def shape_of(self, config: Mapping[str, Any]) -> Shape:
        """Read the shape from a config.json; raise `DamagedCheckpoint` when a size is not a positive number."""
        sizes: dict[str, int] = {}
        for axis, key in self.config.items():
            value = config.get(key)
            if value is None and axis == "kv_heads":
                value = sizes["heads"]
            if value is None and axis == "head_dim":
                value = sizes["hidden"] // sizes["heads"]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DamagedCheckpoint(
                    f"config.json: {key} is {value!r}, not a positive whole number", pointer="/teacher"
                )
            sizes[axis] = value
        if sizes["heads"] % sizes["kv_heads"]:
            raise DamagedCheckpoint(
                f"config.json: {sizes['heads']} heads cannot share {sizes['kv_heads']} KV heads evenly",
                pointer="/teacher",
            )
        tied = config.get("tie_word_embeddings", self.tied_by_default)
        return Shape(**sizes, tied=bool(tied))

    def config_for(self, teacher_config: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
        """The student's config.json: the teacher's known keys with the new sizes, and nothing else.

        Both spellings of the rope settings are written: transformers 4 takes a version-5 `rope_parameters` for absent
        and falls back to theta 10000 without a word.
        """
        kept = {key: teacher_config[key] for key in self.config_keep if key in teacher_config}
        sizes = {key: getattr(shape, axis) for axis, key in self.config.items()}
        rope = dict(teacher_config.get("rope_parameters") or teacher_config.get("rope_scaling") or {})
        old_name = rope.pop("type", "default")  # version 4 also took `type` for `rope_type`
        rope.setdefault("rope_type", old_name)
        theta = rope.pop("rope_theta", teacher_config.get("rope_theta"))
        if theta is not None:
            kept["rope_theta"] = theta
            kept["rope_parameters"] = {**rope, "rope_theta": theta}
        if rope["rope_type"] != "default":
            kept["rope_scaling"] = rope
        return {**kept, **sizes, "tie_word_embeddings": shape.tied, "model_type": teacher_config["model_type"]}

    def tensors(self, shape: Shape, present: frozenset[str] = frozenset()) -> Iterator["Tensor"]:
        """Every tensor of a model of this shape. `present` names the optional table rows that the teacher has."""
        for weight in self.weights:
            if not weight.exists_in(self, shape, present):
                continue
            size = tuple(shape.length(dimension) for dimension in weight.dims)
            for layer in range(shape.layers) if weight.per_layer else (0,):
                yield Tensor(weight.name.format(layer=layer), weight, layer, size)

    def parameter_count(self, shape: Shape, present: frozenset[str] = frozenset()) -> int:
        """Parameters of a model of this shape; a tied matrix counts once."""
        return sum(
            math.prod(shape.length(dimension) for dimension in weight.dims) * (shape.layers if weight.per_layer else 1)
            for weight in self.weights
            if weight.exists_in(self, shape, present)
        )


@cache
def families() -> Mapping[str, Family]:
    """Every table under data/families by name; an unknown key or a malformed row is an error."""
    found: dict[str, Family] = {}
    for path in sorted((files("foundry") / "data" / "families").iterdir(), key=lambda p: p.name):
        if path.name.endswith(".toml"):
            family = parse(Family, tomllib.loads(path.read_text(encoding="utf-8")), prefix=f"/{path.name}")
            found[family.name] = family
    return found


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json; raise `UnsupportedFamily` with the list of those that are supported."""
    model_type = config.get("model_type")
    for family in families().values():
        if model_type in family.model_types:
            return family
    supported = ", ".join(sorted(t for f in families().values() for t in f.model_types))
    raise UnsupportedFamily(
        f"no family table describes model_type {model_type!r}. Supported: {supported}. "
        "A new family is one file under foundry/data/families/ (docs/howto/add-a-family.md).",
        pointer="/teacher",
    )
