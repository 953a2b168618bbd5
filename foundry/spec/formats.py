"""The formats a variant ships in, and how many bytes a tensor takes in each.

GGUF block sizes and the choice of type for each tensor follow llama.cpp's quantiser: k-quants hold 256 values a block,
the older types 32; a row that a block does not divide falls back to a larger type. The planner counts these bytes and
the exporter writes these types, so the two cannot disagree.
"""

import math
from collections.abc import Mapping
from typing import Literal

from foundry.errors import UnknownFormat
from foundry.spec.family import Family
from foundry.spec.record import Record
from foundry.spec.weights import Role, Shape, Tensor, Weight

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
Mix = Mapping[Role, GgufType]
"""The type of each class of tensors in a mixed file."""
_BASE: dict[str, GgufType] = {
    "f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K", "mixed": "Q4_K",
}  # fmt: skip
"""A mixed file is planned with the bytes of q4_k_m: what a budget has beyond them, its types are chosen for."""
_FUSED: dict[str, GgufType] = {"q5_k_m": "Q6_K", "q4_k_m": "Q5_K", "mixed": "Q5_K"}
"""The mixes, and what a fused qkv matrix is in each."""
_WHOLE: tuple[Role, ...] = ("positions", "router")
"""Small matrices that llama.cpp never quantises."""
_HEADER_BYTES = 65_536
_VOCABULARY_ENTRY_BYTES = 40
_ONNX_BITS = {"fp32": 32, "int8": 8, "int4": 4}
_ONNX_BLOCK = 32
"""Values that share one float32 scale in an integer format of ONNX Runtime."""
MIXED = "gguf:mixed"
"""Types of 4 to 8 bits for each class of tensors, chosen by measurement."""
FORMATS = (
    "safetensors",
    *(f"gguf:{quantisation}" for quantisation in _BASE),
    *(f"onnx:{quantisation}" for quantisation in _ONNX_BITS),
)


class Format(Record):
    """One way to write a variant: `safetensors` (bfloat16), or `gguf` or `onnx` with a quantisation."""

    container: Literal["safetensors", "gguf", "onnx"]
    quantisation: str = ""

    def __str__(self) -> str:
        return f"{self.container}:{self.quantisation}" if self.quantisation else self.container


def parse_format(text: str) -> Format:
    """Read 'gguf:q4_k_m'; raise `UnknownFormat` with the list of formats."""
    if text not in FORMATS:
        raise UnknownFormat(f"unknown format {text!r}; the formats are {', '.join(FORMATS)}", pointer="/formats")
    container, _, quantisation = text.partition(":")
    return Format(container=container, quantisation=quantisation)


def is_weighed(form: str) -> bool:
    """Whether the quantiser of a format weighs errors by what the weights are multiplied with: the k-quants do."""
    parsed = parse_format(form)
    return parsed.container == "gguf" and _BASE[parsed.quantisation].endswith("_K")


def gguf_type_of(tensor: Tensor, shape: Shape, quantisation: str, mix: Mix | None = None) -> GgufType:
    """The type a tensor is stored in; one-dimensional tensors stay F32. `mix` comes before the quantisation's rule."""
    boosted = _more_bits(tensor.layer, shape.layers)
    return gguf_type(tensor.weight, tensor.size, boosted, shape, quantisation, mix)


def gguf_type(
    weight: Weight, size: tuple[int, ...], boosted: bool, shape: Shape, quantisation: str, mix: Mix | None = None
) -> GgufType:
    """The type for a table row of this size. `boosted` says whether the layer is one of those that get more bits.

    As in llama.cpp's `_m` mixes, the matrices that suffer most get more bits: the output head (or the embedding that
    doubles as one), and the value and down projections of the first and last eighth of the layers and of every third
    between, are Q6_K; a matrix that holds queries, keys and values is one type above the rest in every layer. Vectors,
    learned positions and routers stay F32.
    """
    if len(size) == 1 or weight.role in _WHOLE:
        return "F32"
    chosen = _BASE[quantisation]
    if mix and weight.role in mix:
        chosen = mix[weight.role]
    elif quantisation in _FUSED:
        doubles_as_head = weight.role == "embedding" and shape.tied
        sensitive = weight.role in ("v", "down") and boosted
        if weight.role == "head" or doubles_as_head or sensitive:
            chosen = "Q6_K"
        elif weight.role == "qkv":
            chosen = _FUSED[quantisation]
    row = size[-1 if weight.input_axis is None else weight.input_axis]  # GPT-2 stores [in, out]; a GGUF never does
    while row % _BLOCK[chosen][0]:
        chosen = _FALLBACK[chosen]
    return chosen


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def bits_of(kind: GgufType) -> float:
    """Bits that one value takes, its share of the block's scales included."""
    block_values, block_bytes = _BLOCK[kind]
    return 8 * block_bytes / block_values


def bytes_of(values: int, kind: GgufType) -> int:
    """Bytes of `values` numbers stored as `kind`."""
    block_values, block_bytes = _BLOCK[kind]
    return values // block_values * block_bytes


def tensor_bytes(weight: Weight, size: tuple[int, ...], boosted: bool, shape: Shape, form: Format) -> int:
    """Bytes of one tensor of a table row; `boosted` as for `gguf_type`."""
    values = math.prod(size)
    if form.container == "safetensors":
        return 2 * values
    if form.container == "onnx":
        return _onnx_bytes(weight, size, shape, form.quantisation)
    return bytes_of(values, gguf_type(weight, size, boosted, shape, form.quantisation))


def _onnx_bytes(weight: Weight, size: tuple[int, ...], shape: Shape, quantisation: str) -> int:
    """ONNX Runtime quantises what it multiplies by, in blocks along a row; vectors and an embedding of its own stay
    float32. An embedding that doubles as the head is one matrix of 4 bits, but two where the head has 8. Tables of
    sines and cosines, which grow with the model's context, are not counted."""
    values, bits = math.prod(size), _ONNX_BITS[quantisation]
    head = weight.role == "embedding" and shape.tied
    looked_up = weight.role in ("embedding", "positions") and not head
    if bits == 32 or len(size) == 1 or looked_up:
        return 4 * values
    row = size[-1 if weight.input_axis is None else weight.input_axis]
    blocks = values // row * -(-row // _ONNX_BLOCK)
    return blocks * (_ONNX_BLOCK * bits // 8 + 4) + (4 * values if head and bits == 8 else 0)


def boosted_layers(layers: int) -> int:
    """How many layers of a model get more bits."""
    return sum(_more_bits(layer, layers) for layer in range(layers))


def weight_bytes(family: Family, shape: Shape, form: Format, present: frozenset[str] = frozenset()) -> int:
    """Bytes of all tensors of a model of this shape in this format; file headers and the tokenizer are not counted.

    A family without a GGUF architecture cannot be written as GGUF; what it would take there is counted all the same.
    """
    return sum(
        _row_bytes(weight, shape, form) * weight.count(shape) // _layers(weight, shape)
        for weight in family.weights
        if family.has(weight, shape, present)
    )


def bytes_read_per_token(family: Family, shape: Shape, form: Format, present: frozenset[str] = frozenset()) -> int:
    """Bytes of the tensors that one token reads: of the experts only those that the router takes.

    One row of the embedding and of the positions is as good as nothing, unless the embedding doubles as the head.
    """
    one_row = {"positions"} if shape.tied or family.head == family.embedding else {"positions", "embedding"}
    active = shape.model_copy(update={"experts": min(shape.experts, shape.experts_per_token)})
    return sum(
        _row_bytes(weight, shape, form) * weight.count(active) // _layers(weight, shape)
        for weight in family.weights
        if family.has(weight, shape, present) and weight.role not in one_row
    )


def _layers(weight: Weight, shape: Shape) -> int:
    return shape.layers if weight.per_layer else 1


def _row_bytes(weight: Weight, shape: Shape, form: Format) -> int:
    """Bytes of one table row in all layers, with one expert in each."""
    size = tuple(shape.length(dimension) for dimension in weight.dims)
    boosted = boosted_layers(shape.layers) if weight.per_layer else 0
    plain = _layers(weight, shape) - boosted
    of_plain, of_boosted = (tensor_bytes(weight, size, more, shape, form) for more in (False, True))
    return plain * of_plain + boosted * of_boosted


def header_bytes(shape: Shape, form: Format) -> int:
    """What a file holds beside tensors, from above: names and padding, and in a GGUF the tokenizer.

    A vocabulary entry with its merge takes about 33 bytes in the files that we have written.
    """
    return _HEADER_BYTES + (_VOCABULARY_ENTRY_BYTES * shape.vocab if form.container == "gguf" else 0)
