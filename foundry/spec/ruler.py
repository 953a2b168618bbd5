"""What many shapes of one teacher take of one budget: the same figures as `Budget`, a hundred times faster.

A large teacher has half a million shapes on its grid. Here each row of the family table is measured once for each size
that it takes, and a shape is a sum of what was measured.
"""

import math
from functools import cache

from foundry.spec.family import Family, Shape, Weight
from foundry.spec.formats import boosted_layers, header_bytes, parse_format, tensor_bytes
from foundry.spec.target import Budget


class Ruler:
    """Measures shapes that differ from the teacher's in hidden, ffn, heads and layers only."""

    def __init__(self, family: Family, teacher: Shape, budget: Budget, present: frozenset[str]) -> None:
        self._teacher, self._budget, self._format = teacher, budget, parse_format(budget.format)
        rows = [weight for weight in family.weights if weight.exists_in(family, teacher, present)]
        self._outside = [weight for weight in rows if not weight.per_layer]
        self._ffn_rows = [weight for weight in rows if weight.per_layer and "ffn" in weight.dims]
        self._other_rows = [weight for weight in rows if weight.per_layer and "ffn" not in weight.dims]
        self._fixed, self._ffn, self._boosted = (
            cache(self._measure_fixed),
            cache(self._measure_ffn),
            cache(boosted_layers),
        )
        in_params = budget.max_params is not None
        self._header = 0 if in_params else header_bytes(teacher, self._format)
        self._cache_of_layer = 0 if in_params else teacher.kv_cache_bytes(budget.context_tokens) // teacher.layers

    def used(self, *, hidden: int, heads: int, layers: int, ffn: int) -> int:
        """Parameters where the budget counts parameters, else the bytes of file and KV cache."""
        outside, plain, boosted = self._fixed(hidden, heads)
        ffn_plain, ffn_boosted = self._ffn(hidden, heads, ffn)
        more = self._boosted(layers)
        in_layers = (layers - more) * (plain + ffn_plain) + more * (boosted + ffn_boosted)
        return self._header + outside + in_layers + layers * self._cache_of_layer

    def _measure_fixed(self, hidden: int, heads: int) -> tuple[int, int, int]:
        shape = self._teacher.model_copy(update={"hidden": hidden, "heads": heads})
        plain, boosted = (self._sum(self._other_rows, shape, boosted=boosted) for boosted in (False, True))
        return self._sum(self._outside, shape, boosted=False), plain, boosted

    def _measure_ffn(self, hidden: int, heads: int, ffn: int) -> tuple[int, int]:
        shape = self._teacher.model_copy(update={"hidden": hidden, "heads": heads, "ffn": ffn})
        return self._sum(self._ffn_rows, shape, boosted=False), self._sum(self._ffn_rows, shape, boosted=True)

    def _sum(self, rows: list[Weight], shape: Shape, *, boosted: bool) -> int:
        sizes = [tuple(shape.length(dimension) for dimension in weight.dims) for weight in rows]
        if self._budget.max_params is not None:
            return sum(map(math.prod, sizes))
        return sum(
            tensor_bytes(weight, size, boosted, shape, self._format) for weight, size in zip(rows, sizes, strict=True)
        )
