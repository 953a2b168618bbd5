"""What many shapes of one teacher take of one budget: the same figures as `Budget`, a hundred times faster.

A large teacher has millions of shapes on its grid. Here each row of the family table is measured once for each size
that it takes, and a shape is a sum of what was measured.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

from foundry.spec.adapter import factor_bytes
from foundry.spec.family import Family
from foundry.spec.formats import boosted_layers, header_bytes, parse_format, tensor_bytes
from foundry.spec.target import Budget
from foundry.spec.weights import Shape, Weight, parts


class Cut(NamedTuple):
    """What a shape keeps along every axis that can be cut; everything else is the teacher's."""

    hidden: int
    heads: int
    kv_heads: int
    layers: int
    experts: int
    ffn: int

    @classmethod
    def of(cls, shape: Shape) -> "Cut":
        """The cut that leaves this shape."""
        return cls(*(getattr(shape, axis) for axis in cls._fields))

    def shape(self, teacher: Shape) -> Shape:
        """What it leaves of a teacher."""
        return teacher.model_copy(update=self._asdict())


class _Row:
    """One row of the table: what one tensor takes in a plain and in a boosted layer, known once for each size."""

    def __init__(self, weight: Weight, size_of: Callable[[Weight, Cut], tuple[int, int]]) -> None:
        self.weight, self._size_of = weight, size_of
        axes = {part.axis for dimension in weight.dims for part in parts(dimension)}
        self.places = [place for place, axis in enumerate(Cut._fields) if axis in axes]
        """Of the axes that it runs along, in a `Cut`."""
        self._known: dict[tuple[int, ...], tuple[int, int]] = {}

    def __call__(self, cut: Cut) -> tuple[int, int]:
        key = tuple([cut[place] for place in self.places])
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._size_of(self.weight, cut)
        return found


class _Rows:
    """The sum of some rows, known once for all their sizes."""

    def __init__(self, rows: list[_Row]) -> None:
        self._once = [row for row in rows if not row.weight.per_expert]
        self._each = [row for row in rows if row.weight.per_expert]
        self.places = sorted({place for row in rows for place in row.places})
        self._key = itemgetter(*self.places)
        self._known: dict[Any, tuple[int, int, int, int]] = {}

    def __call__(self, cut: Cut) -> tuple[int, int]:
        key = self._key(cut)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = (*_totals(self._once, cut), *_totals(self._each, cut))
        plain, boosted, plain_expert, boosted_expert = found
        return plain + cut.experts * plain_expert, boosted + cut.experts * boosted_expert


def _totals(rows: list[_Row], cut: Cut) -> tuple[int, int]:
    sizes = [row(cut) for row in rows]
    return sum(plain for plain, _ in sizes), sum(boosted for _, boosted in sizes)


class Ruler:
    """Measures cuts of one teacher against one budget."""

    def __init__(self, family: Family, teacher: Shape, budget: Budget, present: frozenset[str]) -> None:
        self._teacher, self._budget, self._format = teacher, budget, parse_format(budget.format)
        self._in_params = budget.max_params is not None
        weights = [weight for weight in family.weights if family.has(weight, teacher, present)]
        rows = [_Row(weight, self._sizes) for weight in weights]
        in_layers = [row for row in rows if row.weight.per_layer]
        self._outside = _Rows([row for row in rows if not row.weight.per_layer])
        self._ffn = _Rows([row for row in in_layers if _FFN in row.places])
        self._other = _Rows([row for row in in_layers if _FFN not in row.places])
        self._ffn_key = itemgetter(*{*self._ffn.places, _LAYERS, _EXPERTS} - {_FFN})
        self._boosted = cache(boosted_layers)
        self._least: dict[Any, list[int]] = {}
        self._header = 0 if self._in_params else header_bytes(teacher, self._format)
        cache_bytes = 0 if self._in_params else teacher.kv_cache_bytes(budget.context_tokens)
        self._cache_of_head = cache_bytes // teacher.layers // teacher.kv_heads

    def used(self, cut: Cut) -> int:
        """Parameters where the budget counts parameters, else the bytes of file and KV cache."""
        return self._but_ffn(cut) + self._of_layers(cut.layers, self._ffn(cut))

    def widest(self, cut: Cut, lengths: Sequence[int], limit: int) -> int:
        """The first of these lengths of ffn, longest first, with which a cut keeps the limit; 0 when none does."""
        place = bisect_left(self._falling(cut, lengths), self._but_ffn(cut) - limit)
        return lengths[place] if place < len(lengths) else 0

    def least(self, cut: Cut, lengths: Sequence[int]) -> int:
        """What a cut takes with that of these lengths of ffn with which it takes least."""
        return self._but_ffn(cut) - self._falling(cut, lengths)[-1]

    def _but_ffn(self, cut: Cut) -> int:
        """All but the rows along ffn."""
        in_layers = self._of_layers(cut.layers, self._other(cut)) + cut.layers * cut.kv_heads * self._cache_of_head
        return self._header + self._outside(cut)[0] + in_layers

    def _of_layers(self, layers: int, of_one: tuple[int, int]) -> int:
        more = self._boosted(layers)
        return (layers - more) * of_one[0] + more * of_one[1]

    def _falling(self, cut: Cut, lengths: Sequence[int]) -> list[int]:
        """For each length: the least that the rows along ffn take with it or a longer one, negated, so it rises.

        A shorter ffn may take more bytes where a block no longer divides it; the least of all so far never rises, and
        falls to a limit at the first length that keeps it.
        """
        key = self._ffn_key(cut)
        found = self._least.get(key)
        if found is None:
            least: float = math.inf
            found = self._least[key] = []
            for ffn in lengths:
                least = min(least, self._of_layers(cut.layers, self._ffn(cut._replace(ffn=ffn))))
                found.append(-int(least))
        return found

    def _sizes(self, weight: Weight, cut: Cut) -> tuple[int, int]:
        """One tensor of a row, in a plain layer and in a boosted one."""
        shape = cut.shape(self._teacher)
        size = tuple(shape.length(dimension) for dimension in weight.dims)
        if self._in_params:
            return math.prod(size), math.prod(size)
        plain, boosted = (tensor_bytes(weight, size, more, shape, self._format) for more in (False, True))
        beside = factor_bytes(weight, size, self._budget.adapter_rank)
        return plain + beside, boosted + beside


_LAYERS, _EXPERTS, _FFN = (Cut._fields.index(axis) for axis in ("layers", "experts", "ffn"))
