"""What every exception is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """One thing wrong with one field of a request."""

    pointer: str
    code: str
    detail: str


class FoundryError(Exception):
    """Something went wrong in Foundry."""

    code: ClassVar[str] = "foundry_error"

    def __init__(self, message: str | None = None, *, pointer: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.pointer = pointer
        super().__init__(self.message)

    @property
    def problems(self) -> Sequence[FieldProblem]:
        """The fields at fault; empty when no single field is."""
        if not self.pointer:
            return ()
        return (FieldProblem(pointer=self.pointer, code=self.code, detail=self.message),)
