"""More bits for a device's file where four cost too much: which formats come next."""

from collections.abc import Iterator

from foundry.spec.family import Family
from foundry.spec.formats import MIXED
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

_LADDER = ("gguf:q4_k_m", "gguf:q5_k_m", "gguf:q6_k")


def larger_formats(budget: Budget, family: Family, shape: Shape, present: frozenset[str]) -> Iterator[str]:
    """What is tried after the budget's own format, while it fits; nothing where that is no k-quant.

    First the mixed file, which puts the bytes that the budget has left where they buy most; then those of 5 and 6 bits.
    """
    if budget.format not in _LADDER:
        return
    if budget.model_copy(update={"format": MIXED}).share(family, shape, present) < 1:
        yield MIXED
    for form in _LADDER[_LADDER.index(budget.format) + 1 :]:
        if budget.model_copy(update={"format": form}).share(family, shape, present) <= 1:
            yield form
