"""The base of every record: frozen, keyword-only, no unknown fields."""

import re
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from foundry.errors import FieldProblem, InvalidSpec


class Record(BaseModel):
    """A value of the domain. To change one, make another with `model_copy(update=...)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_PLAIN_NUMBER = re.compile(r"[+-]?\d[\d_]*(\.\d+)?([eE][+-]?\d+)?")


def _count(value: Any) -> Any:
    """Accept 20000000, 2e7 and '20e6': YAML reads a float without a point, such as 20e6, as text."""
    if isinstance(value, str) and _PLAIN_NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(_count), Field(gt=0, lt=2**63)]
"""A positive whole number that may be written 20e6."""

Rate = Annotated[
    float,
    BeforeValidator(lambda v: float(v) if isinstance(v, str) and _PLAIN_NUMBER.fullmatch(v) else v),
    Field(gt=0, allow_inf_nan=False),
]
"""A positive number that YAML may have read as text, such as 1e-3; never infinite, for JSON has no word for that."""

Id = Annotated[
    str, Field(description="A prefix that says what it is, and characters that sort by the time it was made.")
]
"""The name that the service gave an object; `foundry.store.ids` makes it."""

CreatedAt = Annotated[datetime, Field(description="When the service made it, UTC.")]
"""The clock is the database's."""

R = TypeVar("R", bound=Record)


def parse(kind: type[R], document: Any, *, prefix: str = "") -> R:
    """Turn JSON-like data into a record; raise `InvalidSpec` with one problem for each field at fault."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        problems = [_problem(kind, e, prefix) for e in error.errors(include_url=False)]
        # A bad item also makes its list too short: the item's own problem says more.
        causes = [p for p in problems if not any(q.pointer.startswith(f"{p.pointer}/") for q in problems)]
        raise InvalidSpec(causes) from error


_IN_JSON = {
    "tuple_type": "Input should be a list",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "dict_type": "Input should be an object",
}
"""Where pydantic speaks of Python to people who write JSON or YAML."""


def _problem(kind: type[Record], error: Any, prefix: str) -> FieldProblem:
    # Parts in angle brackets name the branch of a union, not a place in the document.
    places = [str(part) for part in error["loc"] if not str(part).startswith("<")]
    detail = _IN_JSON.get(
        error["type"], error["msg"].removeprefix("Value error, ").replace("Tuple should", "List should")
    )
    if error["type"] == "extra_forbidden":
        detail = "unknown field"
        if len(places) == 1:
            detail += f"; the fields are {', '.join(kind.model_fields)}"
    elif error["type"] != "missing" and not isinstance(error.get("input"), dict | list):
        detail += f" (got {error['input']!r:.80})"
    return FieldProblem(pointer=prefix + "".join(f"/{place}" for place in places), code=error["type"], detail=detail)
