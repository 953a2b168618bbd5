"""The formats a variant ships in, and how many bytes a tensor takes in each.

GGUF block sizes and the choice of type for each tensor follow llama.cpp's quantiser: k-quants hold 256 values a block,
the older types 32; a row that a block does not divide falls back to a larger type. The planner counts these bytes and
the exporter writes these types, so the two cannot disagree.
"""

import math
from typing import Literal

from foundry.errors import UnknownFormat
from foundry.spec.family import Family, Shape, Tensor, Weight
from foundry.spec.record import Record

GgufType = Literal["F32", "F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q5_1", "Q5_0"]

_BLOCK: dict[GgufType, tuple[int, int]] = {  # values in a block, bytes of a block
    "F32": (1, 4), "F16": (1, 2), "Q8_0": (32, 34), "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144),
    "Q5_1": (32, 24), "Q5_0": (32, 22),
}  # fmt: skip
_FALLBACK: dict[GgufType, GgufType] = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "Q8_0": "F16",
    "Q5_0": "F16",
    "Q5_1": "F16",
}
_BASE: dict[str, GgufType] = {"f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K"}
_HEADER_BYTES = 65_536
_VOCABULARY_ENTRY_BYTES = 40
FORMATS = ("safetensors", *(f"gguf:{quantisation}" for quantisation in _BASE))


class Format(Record):
    """One way to write a variant: `safetensors` (bfloat16), or `gguf` with a quantisation."""

    container: Literal["safetensors", "gguf"]
    quantisation: str = ""

    def __str__(self) -> str:
        return f"{self.container}:{self.quantisation}" if self.quantisation else self.container


def parse_format(text: str) -> Format:
    """Read 'gguf:q4_k_m'; raise `UnknownFormat` with the list of formats."""
    if text not in FORMATS:
        raise UnknownFormat(f"unknown format {text!r}; the formats are {', '.join(FORMATS)}", pointer="/formats")
    container, _, quantisation = text.partition(":")
    return Format(container=container, quantisation=quantisation)


def gguf_type_of(tensor: Tensor, shape: Shape, quantisation: str) -> GgufType:
    """The type a tensor is stored in; one-dimensional tensors stay F32."""
    return gguf_type(tensor.weight, tensor.size, _more_bits(tensor.layer, shape.layers), shape, quantisation)


def gguf_type(weight: Weight, size: tuple[int, ...], boosted: bool, shape: Shape, quantisation: str) -> GgufType:
    """The type for a table row of this size. `boosted` says whether the layer is one of those that get more bits.

    As in llama.cpp's `_m` mixes, the matrices that suffer most get two bits more: the output head (or the embedding
    that doubles as one), and the value and down projections of the first and last eighth of the layers and of
    every third between.
    """
    if len(size) == 1:
        return "F32"
    chosen = _BASE[quantisation]
    if quantisation in ("q4_k_m", "q5_k_m"):
        doubles_as_head = weight.role == "embedding" and shape.tied
        sensitive = weight.role in ("v", "down") and boosted
        if weight.role == "head" or doubles_as_head or sensitive:
            chosen = "Q6_K"
    while size[-1] % _BLOCK[chosen][0]:
        chosen = _FALLBACK[chosen]
    return chosen


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def bytes_of(values: int, kind: GgufType) -> int:
    """Bytes of `values` numbers stored as `kind`."""
    block_values, block_bytes = _BLOCK[kind]
    return values // block_values * block_bytes


def tensor_bytes(weight: Weight, size: tuple[int, ...], boosted: bool, shape: Shape, form: Format) -> int:
    """Bytes of one tensor of a table row; `boosted` as for `gguf_type`."""
    values = math.prod(size)
    if form.container == "safetensors":
        return 2 * values
    return bytes_of(values, gguf_type(weight, size, boosted, shape, form.quantisation))


def boosted_layers(layers: int) -> int:
    """How many layers of a model get more bits."""
    return sum(_more_bits(layer, layers) for layer in range(layers))


def weight_bytes(family: Family, shape: Shape, form: Format, present: frozenset[str] = frozenset()) -> int:
    """Bytes of all tensors of a model of this shape in this format; file headers and the tokenizer are not counted."""
    total = 0
    for weight in family.weights:
        if not weight.exists_in(family, shape, present):
            continue
        size = tuple(shape.length(dimension) for dimension in weight.dims)
        boosted = boosted_layers(shape.layers) if weight.per_layer else 0
        plain = shape.layers - boosted if weight.per_layer else 1
        total += plain * tensor_bytes(weight, size, False, shape, form)
        total += boosted * tensor_bytes(weight, size, True, shape, form)
    return total


def header_bytes(shape: Shape, form: Format) -> int:
    """What a file holds beside tensors, from above: names and padding, and in a GGUF the tokenizer.

    A vocabulary entry with its merge takes about 33 bytes in the files that we have written.
    """
    return _HEADER_BYTES + (_VOCABULARY_ENTRY_BYTES * shape.vocab if form.container == "gguf" else 0)
