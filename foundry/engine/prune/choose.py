"""Which of the shapes within a budget to take: measured, not guessed."""

import math
from collections.abc import Callable, Sequence

from foundry.spec.search import balance
from foundry.spec.weights import Shape

_AXES = ("hidden", "ffn", "heads", "kv_heads", "layers", "experts")


def choose_shape(
    within: Sequence[Shape], teacher: Shape, score: Callable[[Shape], float], limit: int
) -> list[tuple[Shape, float]]:
    """Score up to `limit` shapes and return them with their scores, best (lowest) first.

    Half of the looks go to the shapes that `balance` favours, the first of them each leaving another axis whole, for
    which axis is dear is the teacher's own. The rest go to the neighbours of the best one found so far: the guess finds
    the regions, the measurements find the place.
    """
    favoured = sorted(within, key=lambda shape: balance(teacher, shape))
    spread = [
        next((shape for shape in favoured if getattr(shape, axis) == getattr(teacher, axis)), favoured[0])
        for axis in _AXES
    ]
    scored: dict[Shape, float] = {}
    for shape in list(dict.fromkeys([favoured[0], *spread, *favoured]))[: max(1, limit // 2)]:
        scored[shape] = score(shape)
    while len(scored) < min(limit, len(within)):
        leader = min(scored, key=scored.__getitem__)
        nearest = min((s for s in favoured if s not in scored), key=lambda s: distance(teacher, s, leader))
        scored[nearest] = score(nearest)
    return sorted(scored.items(), key=lambda item: item[1])


def distance(teacher: Shape, a: Shape, b: Shape) -> float:
    """How far two shapes lie apart, each axis as a share of the teacher's."""
    return math.fsum(((getattr(a, axis) - getattr(b, axis)) / max(1, getattr(teacher, axis))) ** 2 for axis in _AXES)
