"""A query parameter that nobody reads is a mistake of the caller, and is said so instead of being ignored."""

from flask import current_app, request

from foundry.errors import FieldProblem, InvalidSpec
from foundry.spec.record import Record


def refuse_unknown_query() -> None:
    """Raise `InvalidSpec` for a parameter that is given twice, or to a view that takes none."""
    problems = [_problem(name, "given more than once") for name, values in request.args.lists() if len(values) > 1]
    if request.endpoint is not None and _query_record() is None:
        problems += [_problem(name, f"unknown parameter; {request.path} takes none") for name in request.args]
    if problems:
        raise InvalidSpec(problems)


def _query_record() -> type[Record] | None:
    """The record that the view reads its query into; it names its own unknown parameters."""
    view = current_app.view_functions[request.endpoint or ""]
    inputs = getattr(view, "_spec", {}).get("args") or []
    return next((kind for kind, location in inputs if location == "query"), None)


def _problem(name: str, detail: str) -> FieldProblem:
    return FieldProblem(pointer=f"/query/{name}", code="extra_forbidden", detail=detail)
