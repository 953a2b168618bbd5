"""A form as the JSON that the API reads: every field keeps its name, so that an error finds its field again."""

from collections.abc import Collection
from typing import Any

from flask import request
from werkzeug.datastructures import MultiDict

from api.idempotency import CreateHeaders, idempotency
from foundry.errors import FieldProblem, InvalidSpec
from foundry.spec.record import parse
from foundry.store.records import Idempotency

_OWN = frozenset({"csrf", "once", "then"})
"""Fields of the page itself."""


def document(form: MultiDict[str, str], lists: Collection[str] = (), without: Collection[str] = ()) -> dict[str, Any]:
    """`distill.tokens` becomes `{"distill": {"tokens": ...}}`; empty fields are left out, so that defaults hold.

    Raises `InvalidSpec` for fields that no page of ours sends: `limit` and `limit.x` together.
    """
    found: dict[str, Any] = {}
    for name in form:
        values = [value.strip() for value in form.getlist(name) if value.strip()]
        if name in _OWN or name in without or not values:
            continue
        place = found
        *parents, last = name.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                detail = f"{parent} has a value already and cannot have fields inside of it; leave one out"
                raise InvalidSpec([FieldProblem(pointer=f"/{name}", code="value_error", detail=detail)])
        place[last] = values if name in lists else values[-1]
    return found


def headers() -> CreateHeaders:
    """The word that the form was made with stands for one request, however often it is sent."""
    once = request.form.get("once")
    return parse(CreateHeaders, {"idempotency_key": once} if once else {}, prefix="/headers")


def once(*body: str) -> Idempotency | None:
    """What the store compares for a form that makes something."""
    return idempotency(headers(), *body)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """`{"distill": {"tokens": 5}}` as `{"distill.tokens": 5}`; lists stay whole."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}.{name}" if prefix else name)
    return found
