"""Which shapes a budget admits. Arithmetic only: no weights, no torch."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

from foundry.errors import BudgetUnreachable
from foundry.spec.family import Family
from foundry.spec.formats import parse_format
from foundry.spec.ruler import Cut, Ruler
from foundry.spec.stages import Axis
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

SMALLEST_SHARE = 0.25
"""No axis is cut below a quarter of the teacher's: what little is left there is hardly worth keeping."""


def alignment_of(length: int) -> int:
    """The step in which an axis is cut: 256, as k-quants and tensor cores want it, or less where that is too coarse."""
    for step in (256, 64):
        if length >= 16 * step:
            return step
    return 32 if length >= 128 else 8


def choices(teacher: Shape, axes: Iterable[Axis]) -> dict[Axis, list[int]]:
    """The lengths each axis may take by itself, largest first; `Grid` says which go together."""
    allowed = set(axes)

    def steps(axis: Axis, step: int, floor: int) -> list[int]:
        length = int(getattr(teacher, axis))
        return _falling(length, step, floor) if axis in allowed else [length]

    pairs = _attention(teacher, allowed)
    deepest_cut = max(1, -(-teacher.layers // 2))
    ffn, hidden = (max(alignment_of(n), int(n * SMALLEST_SHARE)) for n in (teacher.ffn, teacher.hidden))
    return {
        "hidden": steps("hidden", alignment_of(teacher.hidden), hidden),
        "ffn": steps("ffn", alignment_of(teacher.ffn), ffn),
        "heads": sorted({heads for heads, _ in pairs}, reverse=True),
        "kv_heads": sorted({kv_heads for _, kv_heads in pairs}, reverse=True),
        "layers": steps("layers", 1, deepest_cut),
        "experts": steps(
            "experts", _count_step(teacher.experts, 8), max(teacher.experts_per_token, _quarter(teacher.experts))
        ),
    }


def _falling(length: int, step: int, floor: int) -> list[int]:
    """The length itself, then the multiples of the step below it down to the floor."""
    return [length, *(n for n in range(length - 1, floor - 1, -1) if n % step == 0)]


def _quarter(count: int) -> int:
    return max(1, math.ceil(count * SMALLEST_SHARE))


def _count_step(count: int, finest: int = 16) -> int:
    """Things that are counted one by one go one by one while they are few, else a sixteenth at a time."""
    return 1 if count <= finest else max(1, count // 16)


def _attention(teacher: Shape, allowed: set[Axis]) -> list[tuple[int, int]]:
    """Every pair of heads and KV heads: `heads` cuts the same number out of each group, `kv_heads` whole groups.

    In multi-head attention a group is one head, and either axis cuts both in step.
    """
    group = teacher.heads // teacher.kv_heads
    cut_groups = "kv_heads" in allowed or (group == 1 and "heads" in allowed)
    kv = teacher.kv_heads
    kv_heads = _falling(kv, _count_step(kv), _quarter(kv)) if cut_groups else [kv]
    groups = _falling(group, _count_step(group), _quarter(group)) if "heads" in allowed else [group]
    pairs = [(kv * of_each, kv) for kv in kv_heads for of_each in groups]
    return [pair for pair in pairs if pair[0] >= _quarter(teacher.heads)]


_Place = tuple[int, int, int, int]
"""Where a cut stands along hidden, attention, layers and experts."""


class Grid(NamedTuple):
    """The shapes that may be cut out of a teacher: lengths along axes, longest first, and which go together."""

    teacher: Shape
    hidden: list[int]
    attention: list[tuple[int, int]]
    """Heads and KV heads."""
    layers: list[int]
    experts: list[int]
    ffn: list[int]
    in_step: bool
    """Whether heads fill hidden, so that only pairs of them with hidden = heads x head_dim exist."""
    divides: bool
    """Whether hidden must be a multiple of heads: no class takes it otherwise."""
    gguf: bool = False
    """Whether it has only the shapes that llama.cpp runs."""

    @classmethod
    def of(
        cls, family: Family, teacher: Shape, axes: Iterable[Axis], present: frozenset[str] = frozenset(),
        gguf: bool = False,
    ) -> "Grid":  # fmt: skip
        """The grid of a teacher. Where heads fill hidden, both are cut together or neither is.

        With `gguf` it has the shapes that llama.cpp runs: there heads fill hidden in more families, and others lose no
        layers. A teacher whose own heads do not fill hidden has no GGUF, so nothing is gained by holding to that.
        """
        allowed = set(axes)
        in_step = family.heads_fill_hidden
        if gguf and family.gguf_heads_fill_hidden:
            in_step = in_step or teacher.hidden == teacher.heads * teacher.head_dim
        if gguf and family.gguf_needs_every_layer:
            allowed -= {"layers"}
        if in_step and not {"hidden", "heads"} <= allowed:
            allowed -= {"hidden", "heads", "kv_heads"}
        lengths, attention = choices(teacher, allowed), _attention(teacher, allowed)
        if in_step:
            # Several pairs have as many heads, and not in falling order.
            lengths["hidden"] = sorted({heads * teacher.head_dim for heads, _ in attention}, reverse=True)
        refused = family.hidden_multiple_of_heads and (family.carrier is None or bool(present))
        return cls(
            teacher, lengths["hidden"], attention, lengths["layers"], lengths["experts"], lengths["ffn"], in_step,
            divides=refused and teacher.hidden % teacher.heads == 0, gguf=gguf,
        )  # fmt: skip

    def has(self, hidden: int, heads: int) -> bool:
        """Whether a model of this family can have both."""
        if self.in_step:
            return hidden == heads * self.teacher.head_dim
        return not self.divides or hidden % heads == 0

    def combinations(self) -> Iterator[tuple[_Place, Cut]]:
        """Every cut but for ffn, which is whole, with its place."""
        for (i, hidden), (j, (heads, kv_heads)) in product(enumerate(self.hidden), enumerate(self.attention)):
            if self.has(hidden, heads):
                for (k, layers), (m, experts) in product(enumerate(self.layers), enumerate(self.experts)):
                    yield (i, j, k, m), Cut(hidden, heads, kv_heads, layers, experts, self.teacher.ffn)

    def longer_attention(self) -> list[list[int]]:
        """For each pair of heads and KV heads: the places of the next longer ones.

        A longer pair has no fewer of either; pairs form no chain, so there may be several.
        """
        longer = [
            {
                j
                for j, other in enumerate(self.attention)
                if other != pair and other[0] >= pair[0] and other[1] >= pair[1]
            }
            for pair in self.attention
        ]
        return [sorted(above - set().union(*(longer[j] for j in above))) for above in longer]


def shapes_within(
    family: Family, teacher: Shape, budget: Budget, axes: Iterable[Axis], present: frozenset[str] = frozenset(),
    formats: Iterable[str] | None = None,
) -> list[Shape]:  # fmt: skip
    """The shapes that fit and are not dominated by another that fits; the teacher alone when it fits.

    Dominated means: no axis longer and one shorter. A dominated shape keeps less of the teacher for no gain. `formats`
    are those that the job writes, None without a job: where no GGUF is among them, llama.cpp's rules bind nothing.
    Raises `BudgetUnreachable` with the smallest reachable size when nothing fits.
    """
    if budget.share(family, teacher, present) <= 1:
        return [teacher]
    allowed = tuple(axes)
    gguf = _is_gguf(budget.format) and (formats is None or any(map(_is_gguf, formats)))
    grid = Grid.of(family, teacher, allowed, present, gguf)
    ruler = Ruler(family, teacher, budget, present)
    limit = budget.max_params or budget.max_bytes or 0
    widest: dict[_Place, tuple[int, Cut]] = {}
    for place, cut in grid.combinations():
        if ffn := ruler.widest(cut, grid.ffn, limit):
            widest[place] = ffn, cut
    if not widest:
        raise _unreachable(family, teacher, budget, grid, ruler, present, allowed)
    return [cut.shape(teacher) for cut in _undominated(grid, widest)]


def _is_gguf(form: str) -> bool:
    return parse_format(form).container == "gguf"


def _undominated(grid: Grid, widest: Mapping[_Place, tuple[int, Cut]]) -> list[Cut]:
    """The cuts whose ffn no cut has that is nowhere shorter, in their order."""
    kept: list[Cut] = []
    reach: dict[_Place, int] = {}  # the widest ffn at a place or at anything longer
    known, longer = reach.get, grid.longer_attention()
    attention = sorted(range(len(longer)), key=lambda j: grid.attention[j], reverse=True)  # the longer ones first
    for i, j, k, m in product(range(len(grid.hidden)), attention, range(len(grid.layers)), range(len(grid.experts))):
        most = max(known((i - 1, j, k, m), 0), known((i, j, k - 1, m), 0), known((i, j, k, m - 1), 0))
        for above in longer[j]:
            most = max(most, known((i, above, k, m), 0))
        ffn, cut = widest.get((i, j, k, m), (0, None))
        if cut is not None and ffn > most:
            kept.append(cut._replace(ffn=ffn))
            most = ffn
        if most:
            reach[i, j, k, m] = most
    return kept


def _unreachable(
    family: Family, teacher: Shape, budget: Budget, grid: Grid, ruler: Ruler, present: frozenset[str],
    axes: tuple[Axis, ...],
) -> BudgetUnreachable:  # fmt: skip
    cut = min((cut for _, cut in grid.combinations()), key=lambda cut: ruler.least(cut, grid.ffn))
    smallest = min((cut._replace(ffn=ffn) for ffn in grid.ffn), key=ruler.used).shape(teacher)
    params, size = family.parameter_count(smallest, present), budget.used_bytes(family, smallest, present)
    limit = f"{budget.max_params:,} parameters" if budget.max_params else f"{budget.max_bytes:,} bytes"
    way_out = f"allow at least {params:,} parameters" if budget.max_params else f"allow at least {size:,} bytes"
    more_axes = "let more axes be cut (prune.axes)"
    runtime = "" if family.heads_fill_hidden else " in llama.cpp"
    if grid.gguf and family.gguf_needs_every_layer and "layers" in axes:
        more_axes = (
            "let another format run there, with a target of your own that has format: safetensors (llama.cpp needs "
            f"every layer of {family.name}, so none was cut for {budget.format})"
        )
    elif grid.in_step and len({"hidden", "heads"} & set(axes)) == 1:
        more_axes = f"let hidden and heads be cut together (prune.axes), for {family.name} heads fill hidden{runtime}"
    return BudgetUnreachable(
        f"target {budget.target!r} allows {limit}, but the smallest student of this teacher has {params:,} parameters "
        f"and takes {size:,} bytes as {budget.format} with its KV cache at {budget.context_tokens:,} tokens; "
        f"{way_out}, {more_axes}, or choose a smaller teacher",
        pointer="/targets",
        smallest_bytes=size,
        smallest_params=params,
    )


_COST: Mapping[Axis, tuple[float, float]] = {
    "ffn": (0.0, 1.0), "experts": (0.0, 1.0), "hidden": (0.0, 1.5), "layers": (0.8, 2.2), "heads": (0.5, 2.0),
    "kv_heads": (0.5, 2.0),
}  # fmt: skip
"""What it costs to lose a share of an axis: the first figure times the share, plus the second times its square.

Of thousands of channels the least important are nearly free, so a little width costs next to nothing. The first layer
or head is a large piece already: without the first figure every guess would drop a few layers and heads, while the
published cuts to these budgets keep them all (Mistral NeMo 12B to 8.4 billion, Llama 3.1 8B to 4.5).
"""


def shares_cut(teacher: Shape, shape: Shape) -> dict[Axis, float]:
    """How much of each axis a shape has lost, 0 to 1; KV heads that go in step with heads count as heads."""
    axes = [axis for axis in _COST if axis != "kv_heads" or teacher.heads != teacher.kv_heads]
    return {axis: 1 - getattr(shape, axis) / whole for axis in axes if (whole := getattr(teacher, axis))}


def balance(teacher: Shape, shape: Shape) -> float:
    """How unevenly a shape cuts, before any weight is known: lower is the better guess.

    Weighs each axis by how hard it is to recover: depth and heads hurt more than width for the same share (Minitron,
    2407.14679 and 2408.11796: ffn first, then hidden; heads last; depth when latency asks for it).
    """
    shares = shares_cut(teacher, shape)
    return math.fsum(share * (_COST[axis][0] + _COST[axis][1] * share) for axis, share in shares.items())
