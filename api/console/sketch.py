"""A model's shape as rectangles: a bar for each layer, attention beside the feed-forward network.

A bar is as high as hidden is long and as wide as heads and ffn are, all as shares of the teacher's, so that its area
grows with the parameters of the layer. The bar on top is the vocabulary.
"""

from typing import NamedTuple

from foundry.spec.weights import Shape

WIDTH, HEIGHT = 120.0, 132.0
"""Of one drawing, in SVG units."""
_VOCABULARY = 10.0
_ATTENTION_SHARE = 0.36
"""Of the width at the teacher's size; the rest is the feed-forward network."""
_GAP = 2.0
_FILLED_RATIO = 0.82
"""Of the distance between two layers."""


AXES = (
    ("layers", "layers"), ("hidden", "hidden"), ("ffn", "ffn"), ("heads", "heads"), ("kv_heads", "KV heads"),
    ("experts", "experts"),
)  # fmt: skip
"""What a shape is compared by, and what people call it."""


class Bar(NamedTuple):
    """One rectangle."""

    kind: str
    """vocabulary, attention or ffn."""
    x: float
    y: float
    width: float
    height: float


def bars(shape: Shape, teacher: Shape) -> list[Bar]:
    """The rectangles of a shape at the teacher's scale; equal shapes give equal drawings."""
    thick = shape.hidden / teacher.hidden
    drawn = [_centred("vocabulary", 0, WIDTH * shape.vocab / teacher.vocab, 0, _VOCABULARY, thick)]
    step = (HEIGHT - _VOCABULARY - 2 * _GAP) / teacher.layers
    attention = _ATTENTION_SHARE * WIDTH * shape.heads / teacher.heads
    networks = shape.ffn * max(1, shape.experts) / (teacher.ffn * max(1, teacher.experts))
    ffn = ((1 - _ATTENTION_SHARE) * WIDTH - _GAP) * networks
    for layer in range(shape.layers):
        top = _VOCABULARY + 2 * _GAP + layer * step
        drawn.append(_centred("attention", 0, attention, top, step * _FILLED_RATIO, thick))
        drawn.append(_centred("ffn", attention + _GAP, ffn, top, step * _FILLED_RATIO, thick))
    return drawn


def in_words(shape: Shape, teacher: Shape) -> str:
    """What the drawing shows, for who does not see it."""
    changes = [
        f"{name} {getattr(shape, axis):,} of {getattr(teacher, axis):,}"
        for axis, name in AXES
        if getattr(shape, axis) != getattr(teacher, axis)
    ]
    return "; ".join(changes) if changes else "the same as the teacher's in every axis"


def _centred(kind: str, x: float, width: float, y: float, height: float, thick: float) -> Bar:
    return Bar(kind, round(x, 2), round(y + height * (1 - thick) / 2, 2), round(width, 2), round(height * thick, 2))
