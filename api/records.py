"""Where APIFlask meets the house's records: requests become records by `parse`, so that every error names its field."""

import json
from typing import Any

from apiflask.schema_adapters.pydantic import PydanticAdapter
from flask import Request
from pydantic import BaseModel, ConfigDict
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from foundry.spec.record import Record, parse


class Input(Record):
    """What a view reads from query or headers; the line under a field is its description in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Body(Input):
    """What a view reads from a JSON body."""


class RecordAdapter(PydanticAdapter):
    """Reads records from body, query and headers; raises `InvalidSpec`, or 400 and 415 for what is not JSON at all."""

    model_class: type[BaseModel]

    def validate_input(self, request: Request, location: str, **_: Any) -> BaseModel:
        assert issubclass(self.model_class, Record), f"{self.model_class} is read from a request but is not a Record"
        if location == "json":
            return parse(self.model_class, _json(request))
        if location == "query":
            return parse(self.model_class, request.args.to_dict(), prefix="/query")
        assert location == "headers", location
        names = {name: name.replace("_", "-") for name in self.model_class.model_fields}
        given = {name: request.headers[header] for name, header in names.items() if header in request.headers}
        return parse(self.model_class, given, prefix="/headers")

    def get_schema_name(self) -> str:
        """`Page[Job]` becomes `PageOfJob`: OpenAPI allows no brackets in a name."""
        return self.model_class.__name__.replace("[", "Of").replace("]", "")


def _json(request: Request) -> Any:
    if not request.is_json:
        raise UnsupportedMediaType(f"send JSON as Content-Type: application/json, not {request.mimetype or 'nothing'}")
    try:
        return json.loads(request.get_data(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error
    except ValueError as error:  # also not UTF-8
        raise BadRequest(f"the body is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
