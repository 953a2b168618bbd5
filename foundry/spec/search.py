"""Which shapes a budget admits. Arithmetic only: no weights, no torch."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from foundry.errors import BudgetUnreachable
from foundry.spec.family import Family, Shape
from foundry.spec.ruler import Ruler
from foundry.spec.stages import Axis
from foundry.spec.target import Budget

SMALLEST_SHARE = 0.25
"""No axis is cut below a quarter of the teacher's: what little is left there is hardly worth keeping."""


def alignment_of(length: int) -> int:
    """The step in which an axis is cut: 256, as k-quants and tensor cores want it, or less where that is too coarse."""
    for step in (256, 64):
        if length >= 16 * step:
            return step
    return 32 if length >= 128 else 8


def choices(teacher: Shape, axes: Iterable[Axis]) -> dict[str, list[int]]:
    """The lengths each axis may take, largest first."""
    allowed = set(axes)

    def steps(axis: Axis, length: int) -> list[int]:
        if axis not in allowed:
            return [length]
        step = alignment_of(length)
        floor = max(step, int(length * SMALLEST_SHARE))
        return [length, *(n for n in range(length - 1, floor - 1, -1) if n % step == 0)]

    group = teacher.heads // teacher.kv_heads
    heads = [teacher.kv_heads * n for n in range(group, 0, -1)] if "heads" in allowed else [teacher.heads]
    if group == 1:
        heads = [teacher.heads]
    deepest_cut = max(1, -(-teacher.layers // 2)) if "layers" in allowed else teacher.layers
    return {
        "hidden": steps("hidden", teacher.hidden),
        "ffn": steps("ffn", teacher.ffn),
        "heads": heads,
        "layers": list(range(teacher.layers, deepest_cut - 1, -1)),
    }


def shapes_within(
    family: Family, teacher: Shape, budget: Budget, axes: Iterable[Axis], present: frozenset[str] = frozenset()
) -> list[Shape]:
    """The shapes that fit and are not dominated by another that fits; the teacher alone when it fits.

    Dominated means: no axis longer and one shorter. A dominated shape keeps less of the teacher for no gain. Raises
    `BudgetUnreachable` with the smallest reachable size when nothing fits.
    """
    if budget.share(family, teacher, present) <= 1:
        return [teacher]
    grid = choices(teacher, axes)
    ruler = Ruler(family, teacher, budget, present)
    limit = budget.max_params or budget.max_bytes or 0
    widest = {
        (hidden, heads, layers): next(
            (f for f in grid["ffn"] if ruler.used(hidden=hidden, heads=heads, layers=layers, ffn=f) <= limit), 0
        )
        for hidden, heads, layers in _combinations(teacher, grid)
    }
    if not any(widest.values()):
        raise _unreachable(family, teacher, budget, grid, ruler, present)
    return [
        teacher.model_copy(update={"hidden": hidden, "heads": heads, "layers": layers, "ffn": ffn})
        for (hidden, heads, layers), ffn in _undominated(grid, widest).items()
    ]


def _combinations(teacher: Shape, grid: Mapping[str, list[int]]) -> Iterator[tuple[int, int, int]]:
    """Every hidden, heads and layers of the grid that a model can have together, longest first."""
    for hidden, heads, layers in product(grid["hidden"], grid["heads"], grid["layers"]):
        # LlamaConfig and Gemma3Config refuse hidden % heads != 0 even where head_dim is given.
        if teacher.hidden % teacher.heads or not hidden % heads:
            yield hidden, heads, layers


def _undominated(
    grid: Mapping[str, list[int]], widest: Mapping[tuple[int, int, int], int]
) -> dict[tuple[int, int, int], int]:
    """The combinations whose widest ffn no combination with equal or longer axes has, in their order."""
    kept: dict[tuple[int, int, int], int] = {}
    reach: dict[tuple[int, int, int], int] = {}  # by place in the grid: the widest ffn there or at anything longer
    for i, j, k in product(*(range(len(grid[axis])) for axis in ("hidden", "heads", "layers"))):
        longer = max(reach.get(place, 0) for place in ((i - 1, j, k), (i, j - 1, k), (i, j, k - 1)))
        combination = grid["hidden"][i], grid["heads"][j], grid["layers"][k]
        ffn = widest.get(combination, 0)
        if ffn > longer:
            kept[combination] = ffn
        reach[i, j, k] = max(ffn, longer)
    return kept


def _unreachable(
    family: Family, teacher: Shape, budget: Budget, grid: Mapping[str, list[int]], ruler: Ruler, present: frozenset[str]
) -> BudgetUnreachable:
    cuts = (
        {"hidden": hidden, "heads": heads, "layers": layers, "ffn": ffn}
        for hidden, heads, layers in _combinations(teacher, grid)
        for ffn in grid["ffn"]
    )
    smallest = teacher.model_copy(update=min(cuts, key=lambda cut: ruler.used(**cut)))
    params, size = family.parameter_count(smallest, present), budget.used_bytes(family, smallest, present)
    limit = f"{budget.max_params:,} parameters" if budget.max_params else f"{budget.max_bytes:,} bytes"
    way_out = f"allow at least {params:,} parameters" if budget.max_params else f"allow at least {size:,} bytes"
    return BudgetUnreachable(
        f"target {budget.target!r} allows {limit}, but the smallest student of this teacher has {params:,} parameters "
        f"and takes {size:,} bytes as {budget.format} with its KV cache at {budget.context_tokens:,} tokens; "
        f"{way_out}, let more axes be cut (prune.axes), or choose a smaller teacher",
        pointer="/targets",
        smallest_bytes=size,
        smallest_params=params,
    )


def balance(teacher: Shape, shape: Shape) -> float:
    """How unevenly a shape cuts, before any weight is known: lower is the better guess.

    Weighs each axis by how hard it is to recover: depth and heads hurt more than width for the same share (Minitron,
    2407.14679 and 2408.11796: ffn first, then hidden; heads last; depth when latency asks for it).
    """
    cost = {"ffn": 1.0, "hidden": 1.5, "layers": 3.0, "heads": 2.5}
    return math.fsum(w * (1 - getattr(shape, axis) / getattr(teacher, axis)) ** 2 for axis, w in cost.items())
