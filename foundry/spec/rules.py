"""What a family's table says of single settings: values that it describes, and what other software makes of them."""

from collections.abc import Mapping
from typing import Any

from foundry.errors import UnsupportedFamily
from foundry.spec.record import Record
from foundry.spec.weights import Role


class Only(Record):
    """A setting whose other values mean a model that the table does not describe; absent or null is always right."""

    key: str
    values: tuple[Any, ...]
    reason: str

    def check(self, config: Mapping[str, Any], family: str) -> None:
        """Raise `UnsupportedFamily` where a config.json has another value."""
        value = config.get(self.key)
        if value is not None and value not in self.values:
            raise UnsupportedFamily(
                f"config.json: {self.key} is {value!r}; the {family} table describes models where it is "
                f"{' or '.join(repr(v) for v in self.values)}: {self.reason}",
                pointer="/teacher",
            )


class QueryScale(Record):
    """Where a family's config says what attention scores are divided by, and llama.cpp takes a number of its own.

    llama.cpp divides by the square root of head_dim, and of hidden / heads in models of one depth. The weight that
    makes queries is multiplied on export so that both give the same scores.
    """

    key: str
    """Scores are divided by the square root of this setting."""
    role: Role
    """The last weight that queries pass through."""
    hidden_over_heads_at: int
    """The number of layers at which llama.cpp takes hidden / heads."""


class Carrier(Record):
    """Another family, whose class computes the same and takes shapes that this one's class refuses."""

    family: str
    architecture: str
    """The class as config.json names it."""
    null: tuple[str, ...] = ()
    """Settings that must be null there for it to compute the same."""
