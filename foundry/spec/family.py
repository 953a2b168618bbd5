"""A family is a table: every weight's name, the axis of each of its dimensions, and where the config keeps each axis.

The unit of coupling is the axis: cutting ffn channel 7 removes row 7 of gate_proj and up_proj and column 7 of down_proj
in every layer, because all three dimensions carry the axis `ffn`. A fused matrix has several axes along one dimension:
`heads+kv_heads+kv_heads` is q over k over v. Nothing else in the house knows a weight by name.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal

from pydantic import model_validator

from foundry.errors import DamagedCheckpoint, UnsupportedFamily
from foundry.spec.config_json import absent_length, rope_both_ways, rope_by_layer_type
from foundry.spec.record import Record, parse
from foundry.spec.rules import Carrier, Only, QueryScale
from foundry.spec.weights import ATTENTION_READERS, Role, Shape, Tensor, Weight


class Family(Record):
    """Everything the house knows about models that share weight names."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` values of config.json that this table describes."""
    gguf_architecture: str
    """llama.cpp's name; empty where it has no architecture that computes the same."""
    gguf_settings: Mapping[str, str] = {}
    """Key of a GGUF file, behind the architecture -> key of config.json (`a.b` is inside a); numbers and switches."""
    gguf_context: tuple[str, ...] = ("max_position_embeddings",)
    """Keys of which the smallest is the context of a GGUF file. llama.cpp attends to everything where it knows no
    sliding window: up to the window that is the same."""
    gguf_only: tuple[Only, ...] = ()
    """Settings whose other values llama.cpp would compute otherwise; absent means the config class's value."""
    gguf_ropes: tuple[str, ...] = ("default", "linear", "yarn")
    """Rope types that llama.cpp computes in this architecture and the writer knows."""
    gguf_windows: bool = False
    """llama.cpp reads the sliding window and after how many layers one attends to everything."""
    gguf_window_theta: bool = False
    """llama.cpp turns the layers with a window with a frequency of their own."""
    gguf_layers: Mapping[str, tuple[Any, ...]] = {}
    """Key of config.json with an entry for each layer -> what llama.cpp assumes, repeated along the layers."""
    gguf_query: QueryScale | None = None
    gguf_heads_fill_hidden: bool = False
    """llama.cpp takes hidden / heads for head_dim in this architecture, whatever the file says."""
    onnx_carrier: Carrier | None = None
    """Another family, under whose class the builder of ONNX Runtime knows a model that computes the same."""
    config: Mapping[str, str]
    """Axis of `Shape` -> key of config.json."""
    absent: Mapping[str, str] = {}
    """Axis -> what it is where config.json has no such key: a number, `heads`, `hidden/heads` or `4*hidden`."""
    aliases: Mapping[str, str] = {}
    """Key of config.json -> another name of it."""
    config_keep: tuple[str, ...]
    """Other keys that are carried into a student's config; everything else is dropped."""
    config_lists: tuple[str, ...] = ()
    """Keys whose value is a list with one entry a layer: a student keeps the entries of its layers."""
    only: tuple[Only, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    """`layer` subtracts the mean before it divides by the length."""
    norm_offset: float = 0.0
    """A norm multiplies by its weight plus this: 1 in Gemma."""
    embedding_times_sqrt_hidden: bool = False
    """Whether the model multiplies embeddings by the square root of hidden, as Gemma does."""
    hidden_multiple_of_heads: bool = False
    """The config class refuses a hidden that heads do not divide, even where head_dim is given."""
    carrier: Carrier | None = None
    """Saves what this class refuses, unless the model has an optional weight."""
    heads_fill_hidden: bool = False
    """The model takes hidden / heads for head_dim and nothing else: heads are cut with hidden, in step."""
    rope_by_layer_type: bool = False
    """Version 5 keeps rope settings of their own for each layer type; version 4 spells them with flat keys."""
    tied_by_default: bool = False
    """What an absent `tie_word_embeddings` means in this family's config class."""
    renamed_modules: Mapping[str, str] = {}
    """Part of a stored name -> what the class calls that module."""
    weights: tuple[Weight, ...]

    @model_validator(mode="before")
    @classmethod
    def _biases_become_rows(cls, document: Any) -> Any:
        rows = document.get("weights") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            return document
        made: list[Weight] = []
        for row in rows:
            weight = row if isinstance(row, Weight) else Weight.model_validate(row)
            made.append(weight.model_copy(update={"bias": "none"}))
            if weight.bias != "none":
                made.append(weight.bias_row())
        return {**document, "weights": made}

    @cached_property
    def _by_role(self) -> Mapping[Role, Weight]:
        return {w.role: w for w in reversed(self.weights) if not w.is_bias}

    def find(self, role: Role) -> Weight | None:
        """The weight with this role (not its bias), or None where the family has none."""
        return self._by_role.get(role)

    def row(self, role: Role) -> Weight:
        """The weight with this role (not its bias); `KeyError` where the family has none."""
        return self._by_role[role]

    def reads(self, role: Role) -> Role | None:
        """The norm whose output a reader takes in; None where it reads the stream itself, as in OLMo 2."""
        norm: Role = "attention_norm" if role in ATTENTION_READERS else "ffn_norm"
        if role == "head":
            norm = "final_norm"
        return norm if norm in self._by_role else None

    def has(self, weight: Weight, shape: Shape, present: frozenset[str]) -> bool:
        """Whether a model has a weight: a tied head has none of its own, an optional row must be `present`."""
        if shape.tied and weight.role == "head" and self.head != self.embedding:
            return False
        return not weight.optional or weight.name in present

    @property
    def embedding(self) -> str:
        return self.row("embedding").name

    @property
    def head(self) -> str:
        """The output matrix; the embedding itself in a family that never has one of its own."""
        return (self.find("head") or self.row("embedding")).name

    @property
    def layer_module(self) -> str:
        """Where a decoder layer lives, for example `model.layers.{layer}`."""
        return self.row("o").name.split("{layer}")[0] + "{layer}"

    def module_of(self, weight: Weight, layer: int) -> str:
        """The module of a weight as the class names it."""
        name = weight.module.format(layer=layer, expert="{expert}")
        for stored, called in self.renamed_modules.items():
            name = name.replace(stored, called)
        return name

    @property
    def gguf_needs_every_layer(self) -> bool:
        """Whether llama.cpp takes the kind of a layer from its number, so that cutting one changes those behind it."""
        return self.gguf_windows or any(len(pattern) > 1 for pattern in self.gguf_layers.values())

    @property
    def exactly_rotatable(self) -> bool:
        """Whether turning the residual stream changes nothing: no norm behind a writer."""
        return "attention_post_norm" not in self._by_role and "ffn_post_norm" not in self._by_role

    def carried_by(self, shape: Shape, present: frozenset[str]) -> Carrier | None:
        """Who saves a shape that this family's class refuses; None where the class takes it or nobody does."""
        refused = self.hidden_multiple_of_heads and shape.hidden % shape.heads != 0
        return self.carrier if refused and not present else None

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """A setting under its name or its other name."""
        found = config.get(key)
        return config.get(self.aliases.get(key, key)) if found is None else found

    def shape_of(self, config: Mapping[str, Any]) -> Shape:
        """Read the shape from a config.json.

        Raises `DamagedCheckpoint` when a size is not a positive number or sizes do not go together, and
        `UnsupportedFamily` for a setting that the table does not describe.
        """
        sizes: dict[str, int] = {}
        for axis in (*self.config, *(a for a in self.absent if a not in self.config)):
            key = self.config.get(axis, "")
            value = self.value(config, key) if key else None
            if value is None and axis in self.absent:
                value = absent_length(self.absent[axis], sizes)
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
        for setting in self.only:
            setting.check(config, self.name)
        tied = config.get("tie_word_embeddings", self.tied_by_default)
        return Shape(**sizes, tied=bool(tied))

    def config_for(
        self, teacher_config: Mapping[str, Any], shape: Shape, layers: tuple[int, ...] | None = None,
        present: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:  # fmt: skip
        """The student's config.json: the teacher's known keys with the new sizes, and nothing else.

        `layers` are the teacher's layers that stay, None keeps all; `present` names its optional table rows. Both
        spellings of the rope settings are written: transformers 4 takes a version-5 `rope_parameters` for absent and
        falls back to theta 10000 without a word.
        """
        kept = {key: teacher_config[key] for key in self.config_keep if key in teacher_config}
        for key in self.config_lists:
            if isinstance(entries := teacher_config.get(key), list):
                kept[key] = entries if layers is None else [entries[layer] for layer in layers]
        sizes = {key: getattr(shape, axis) for axis, key in self.config.items()}
        kept |= rope_by_layer_type(teacher_config) if self.rope_by_layer_type else rope_both_ways(teacher_config)
        kept |= sizes | {"tie_word_embeddings": shape.tied, "model_type": teacher_config["model_type"]}
        if carrier := self.carried_by(shape, present):
            other = families()[carrier.family]
            kept = {key: kept[key] for key in kept if key in other.config_keep or key not in self.config_keep}
            kept |= {"model_type": other.model_types[0], "architectures": [carrier.architecture]}
            kept |= dict.fromkeys(carrier.null)
        return kept

    def tensors(self, shape: Shape, present: frozenset[str] = frozenset()) -> Iterator["Tensor"]:
        """Every tensor of a model of this shape, first those outside the layers, then layer by layer.

        `present` names the optional table rows that the teacher has.
        """
        rows = [weight for weight in self.weights if self.has(weight, shape, present)]
        sizes = {w.name: tuple(shape.length(dimension) for dimension in w.dims) for w in rows}
        for weight in rows:
            if not weight.per_layer:
                yield Tensor(weight.name, weight, 0, sizes[weight.name])
        for layer in range(shape.layers):
            for weight in rows:
                if weight.per_layer:
                    for expert in range(shape.experts) if weight.per_expert else (0,):
                        name = weight.name.format(layer=layer, expert=expert)
                        yield Tensor(name, weight, layer, sizes[weight.name], expert)

    def parameter_count(self, shape: Shape, present: frozenset[str] = frozenset()) -> int:
        """Parameters of a model of this shape; a tied matrix counts once."""
        return sum(
            math.prod(shape.length(dimension) for dimension in weight.dims) * weight.count(shape)
            for weight in self.weights
            if self.has(weight, shape, present)
        )


@cache
def families() -> Mapping[str, Family]:
    """Every table under data/families by name; an unknown key or a malformed row is an error."""
    folder = files("foundry") / "data" / "families"
    tables = {
        path.name: tomllib.loads(path.read_text("utf-8")) for path in folder.iterdir() if path.name[-5:] == ".toml"
    }
    return {
        (family := parse(Family, _whole(tables[name], tables), prefix=f"/{name}")).name: family
        for name in sorted(tables)
    }


def _whole(table: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A table with what it takes from the one it is `like`: its rows replace those of the same name, or are added."""
    own = dict(table)
    like, without = own.pop("like", None), own.pop("without", [])
    if like is None:
        return own
    base = _whole(tables[f"{like}.toml"], tables)
    rows = {row["name"]: row for row in base["weights"] if row["name"] not in without}
    rows |= {row["name"]: row for row in own.pop("weights", [])}
    return {**base, **own, "weights": list(rows.values())}


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
