"""The line under a field or a value, for the OpenAPI document: the code is the only place where they are described.

Pydantic can do so itself, but reads every module's source when it is imported, which would make `import foundry` slow.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any, TypeVar

from pydantic import BaseModel

_OURS = ("foundry.", "api.")
K = TypeVar("K")


def describe_fields(schemas: dict[str, Any]) -> None:
    """Add to every schema what its fields or its values mean, where a schema does not say so itself."""
    for kind in _kinds(BaseModel):
        schema = schemas.get(kind.__name__.replace("[", "Of").replace("]", ""), {})
        properties = schema.get("properties", {})
        if set(properties) == set(kind.model_fields):  # else it is another record of this name
            generic = kind.__pydantic_generic_metadata__["origin"]
            schema.setdefault("description", inspect.getdoc(generic or kind))
            for name, meaning in _meanings(kind).items():
                if name in properties:
                    properties[name].setdefault("description", meaning)
    for values in _kinds(StrEnum):
        schema = schemas.get(values.__name__, {})
        if schema.get("enum") == list(values):
            lines = [f"- `{values[name]}`: {meaning}" for name, meaning in _meanings(values).items()]
            schema["description"] = "\n".join([inspect.getdoc(values) or "", "", *lines])


def _kinds(base: type[K]) -> Iterator[type[K]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith(_OURS):
            yield kind
        yield from _kinds(kind)


@cache
def _meanings(kind: type) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith(_OURS) and "[" not in base.__name__:  # a Page[Job] has no source of its own
            definition = ast.parse(dedent(inspect.getsource(base))).body[0]
            assert isinstance(definition, ast.ClassDef)
            for field, line in pairwise(definition.body):
                match field, line:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        found[name] = inspect.cleandoc(text).replace("\n", " ")
    return found
