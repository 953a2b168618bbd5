"""What a weight and a shape are: rows of a family table, and the lengths of a model along every axis.

A dimension of a weight is written as the axes that run along it: `hidden`, `heads*3`, or `heads+kv_heads+kv_heads` for
q over k over v in one matrix.
"""

from functools import cache
from typing import Literal, NamedTuple, Self, get_args

from pydantic import model_validator

from foundry.spec.record import Record

Length = Literal["vocab", "positions", "hidden", "ffn", "heads", "kv_heads", "head_dim", "experts"]
"""What one part of a dimension counts. `heads` and `kv_heads` parts are heads x head_dim long."""
Role = Literal[
    "embedding", "positions", "head", "attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm",
    "final_norm",
    "q", "k", "v", "qkv", "q_norm", "k_norm", "o", "gate", "up", "gate_up", "down", "router",
]  # fmt: skip
"""What a weight does. A norm stands before its readers, a post norm behind their writer."""
NORMS: tuple[Role, ...] = ("attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm", "final_norm")
ATTENTION_READERS: tuple[Role, ...] = ("q", "k", "v", "qkv")
FFN_READERS: tuple[Role, ...] = ("gate", "up", "gate_up", "router")
READERS: tuple[Role, ...] = (*ATTENTION_READERS, *FFN_READERS, "head")
WRITERS: tuple[Role, ...] = ("o", "down")


class Part(NamedTuple):
    """One stretch of a dimension: an axis, `times` times over (each head of GPT-NeoX holds its q, k and v rows)."""

    axis: Length
    times: int


@cache
def parts(dimension: str) -> tuple[Part, ...]:
    """Read `heads+kv_heads+kv_heads` or `heads*3`; raise `ValueError` for anything else."""
    found = []
    for text in dimension.split("+"):
        axis, star, times = text.partition("*")
        if axis not in get_args(Length) or (star and not times.isdigit()):
            raise ValueError(f"dimension {dimension!r}: {text!r} is not AXIS or AXIS*N, AXIS of {get_args(Length)}")
        found.append(Part(axis, int(times or 1)))  # type: ignore[arg-type]
    return tuple(found)


class Shape(Record):
    """The size of a model along every axis."""

    layers: int
    """Transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    ffn: int
    """Of one expert where there are experts."""
    heads: int
    """Query heads of a layer."""
    kv_heads: int
    """Heads of keys and values in a layer; as many as `heads` in multi-head attention."""
    head_dim: int
    """Channels of one head."""
    vocab: int
    """Rows of the embedding."""
    tied: bool
    """Whether the output head shares its matrix with the embedding."""
    experts: int = 0
    """Feed-forward networks of a layer among which a router chooses; 0 for a dense model."""
    experts_per_token: int = 0
    """Of them that the router takes for a token; 0 for a dense model."""
    positions: int = 0
    """Rows of a learned position embedding; 0 without one."""

    @property
    def in_words(self) -> str:
        """The lengths in one line, for people."""
        heads = str(self.heads) if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        experts = f", {self.experts_per_token} of {self.experts} experts a token" if self.experts else ""
        return f"{self.layers} layers, hidden {self.hidden}, ffn {self.ffn}, heads {heads}{experts}"

    def unit(self, axis: Length) -> int:
        """Rows that one index of an axis takes."""
        return self.head_dim if axis in ("heads", "kv_heads") else 1

    def length(self, dimension: str) -> int:
        """How many rows or columns a dimension has."""
        return sum(int(getattr(self, p.axis)) * self.unit(p.axis) * p.times for p in parts(dimension))

    def kv_cache_bytes(self, context_tokens: int, bytes_per_value: int = 2) -> int:
        """Keys and values of one sequence: 2 x layers x kv_heads x head_dim x context, in f16 by default."""
        return 2 * self.layers * self.kv_heads * self.head_dim * context_tokens * bytes_per_value


class Weight(Record):
    """One row of a family table. `{layer}` in a name stands for every layer, `{expert}` for every expert."""

    name: str
    dims: tuple[str, ...]
    """In the order of the stored tensor."""
    role: Role
    gguf: str = ""
    """Its name in a GGUF file."""
    bias: Literal["none", "optional", "always"] = "none"
    """Whether a bias stands beside this weight. It becomes a row of its own, with the same role and one dimension."""
    is_bias: bool = False
    optional: bool = False
    """Present in some members of the family only."""
    gguf_permute: Literal["heads", "kv_heads"] | None = None
    """llama.cpp's rotary layout interleaves the two halves of each head; rows are reordered on export."""
    gguf_add: float = 0.0
    """Added on export: families whose norm multiplies by (1 + weight) store weight, llama.cpp wants 1 + weight."""

    @model_validator(mode="after")
    def _dimensions_are_known(self) -> Self:
        for dimension in self.dims:
            parts(dimension)
        return self

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.name

    @property
    def per_expert(self) -> bool:
        """Whether every expert of a layer has one."""
        return "{expert}" in self.name

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.name.removesuffix(".bias" if self.is_bias else ".weight")

    @property
    def input_axis(self) -> int | None:
        """Which dimension of a projection its input runs along; None for what is no projection.

        A reader takes in hidden, a writer gives it out.
        """
        if len(self.dims) != 2 or self.role in ("embedding", "positions"):
            return None
        hidden = self.dims.index("hidden")
        return 1 - hidden if self.role in WRITERS else hidden

    def bias_row(self) -> "Weight":
        """The row of its bias: a projection's runs along its output, a norm's along the norm."""
        dims = tuple(d for place, d in enumerate(self.dims) if place != self.input_axis)
        return Weight(
            name=f"{self.module}.bias", dims=dims, role=self.role, is_bias=True, optional=self.bias == "optional",
            gguf=self.gguf.removesuffix(".weight") + ".bias" if self.gguf else "", gguf_permute=self.gguf_permute,
        )  # fmt: skip

    def count(self, shape: Shape) -> int:
        """How many of it a model has."""
        return (shape.layers if self.per_layer else 1) * (shape.experts if self.per_expert else 1)


class Tensor(NamedTuple):
    """One tensor of a model: its full name, its row in the table, its layer and expert (0 outside), its size."""

    name: str
    weight: Weight
    layer: int
    size: tuple[int, ...]
    expert: int = 0
