"""More bits for a device's file where four cost too much: which formats come next."""

from collections.abc import Iterator

from foundry.spec.family import Family
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

_LADDER = ("gguf:q4_k_m", "gguf:q5_k_m", "gguf:q6_k")


def larger_formats(budget: Budget, family: Family, shape: Shape, present: frozenset[str]) -> Iterator[str]:
    """The formats above the budget's own that still fit it, smallest first; none where it is no k-quant."""
    if budget.format not in _LADDER:
        return
    for form in _LADDER[_LADDER.index(budget.format) + 1 :]:
        if budget.model_copy(update={"format": form}).share(family, shape, present) <= 1:
            yield form
