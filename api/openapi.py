"""What APIFlask cannot see by itself, added to the OpenAPI document: problems, keys, bodies that are not JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from flask import current_app
from pydantic import BaseModel

from api.auth import OPEN_ENDPOINTS, scope_of
from api.errors import MEDIA_TYPE, Problem
from api.examples import EXAMPLES
from api.field_docs import describe_fields
from foundry.spec.access import Scope
from foundry.spec.report import JobReport

EVENT_STREAM = "text/event-stream"
DESCRIPTION = (
    "Foundry prunes, distils and exports language models to the size of a device. Every request under /v1 needs a "
    "key: `Authorization: Bearer fdy_...`. Every answer that is not a success is a problem document (RFC 9457). "
    "Lists come in pages: give `next` as `after` for the following one."
)
_IN_PATH = {
    "alias": "The name that points to a variant",
    "dataset_id": "The id of a dataset, ds_...",
    "delivery_id": "The id of a message to this endpoint, whd_...",
    "endpoint_id": "The id of a webhook endpoint, whk_...",
    "evaluation_id": "The id of an evaluation, eval_...",
    "form": "json, html or md",
    "job_id": "The id of a job, job_...",
    "key_id": "The id of a key, key_...; never the key itself",
    "member_id": "The id of a member, mem_...",
    "model_id": "The id of a registered model, mdl_...",
    "name": "The name of a device, as a job's `targets` name it",
    "number": "Which part it is, counted from 1",
    "path": "Of one file as in `files` of the variant, with forward slashes",
    "project": "The id of a project, prj_...",
    "upload_id": "The id of an upload, up_...",
    "variant_id": "The id of a variant, var_...",
}
"""What a part of an address is; every view calls the same thing by the same name."""
_BYTES = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_HEADERS = {
    "ETag": "The SHA-256 of the whole file, quoted; give it as If-Range",
    "Repr-Digest": "The SHA-256 of the whole file (RFC 9530)",
    "Accept-Ranges": "bytes",
}
_FILE_HEADERS = {name: {"description": text, "schema": _TEXT} for name, text in _HEADERS.items()}
FILE: dict[int, Any] = {
    200: {
        "description": "The whole file",
        "content": {"application/octet-stream": {"schema": _BYTES}},
        "headers": _FILE_HEADERS,
    },
    206: {
        "description": "The part that Range asked for",
        "content": {"application/octet-stream": {"schema": _BYTES}},
        "headers": _FILE_HEADERS,
    },
    304: "Not modified: If-None-Match names the digest",
    412: "If-Match names other bytes",
    416: "The file ends before the part that Range asks for",
}
"""For `doc(responses=...)` of a view that sends a file."""


def raw_body(media_types: Iterable[str]) -> dict[str, Any]:
    """For `doc(extensions=...)`: the body is the file itself."""
    content = {media_type: {"schema": _BYTES} for media_type in media_types}
    return {"requestBody": {"required": True, "content": content}}


def also_as_stream(description: str) -> dict[int, Any]:
    """For `doc(responses=...)`: the answer may be server-sent events."""
    schema = {"type": "string", "description": description}
    return {200: {"content": {EVENT_STREAM: {"schema": schema}}}, 204: "The stream is over: do not connect again"}


def text(description: str) -> dict[int, Any]:
    """For `doc(responses=...)`: the answer is plain text."""
    return {200: {"description": description, "content": {"text/plain": {"schema": _TEXT}}}}


def document(kind: type[BaseModel], description: str) -> dict[int, Any]:
    """For `doc(responses=...)`: the answer is a stored document of this kind, sent as it is."""
    return {200: {"description": description, "content": {"application/json": {"schema": _inline(kind)}}}}


def report_document() -> dict[int, Any]:
    """For `doc(responses=...)`: a job's report in one of its forms; 304 and parts as of every stored file."""
    content = {"application/json": {"schema": _inline(JobReport)}, "text/html": {"schema": _TEXT}}
    whole = {"description": "The report", "content": content | {"text/markdown": {"schema": _TEXT}}}
    return FILE | {200: {**whole, "headers": _FILE_HEADERS}}


def complete(spec: dict[str, Any]) -> dict[str, Any]:
    """APIFlask's document with every problem, the key on all that needs one, and one name for one schema."""
    spec = _one_name_each(spec)
    schemas = spec["components"]["schemas"]
    schemas["Problem"] = _inline(Problem)
    for name in ("HTTPError", "ValidationError"):  # APIFlask's own shapes, which no answer of ours has
        schemas.pop(name, None)
    spec["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    describe_fields(schemas)
    from api.answers import answers  # late: it shows the records of views, which import this module

    scopes = _scopes()
    for operations in spec["paths"].values():
        for method, operation in operations.items():
            endpoint = operation["operationId"].removeprefix(f"{method}_")
            _complete_operation(operation, closed=endpoint in scopes, scope=scopes.get(endpoint))
            if method == "get" and endpoint in scopes:
                _add_etag(operation["responses"])
            _add_examples(operation, answers())
    return spec


def _scopes() -> dict[str, Scope | None]:
    """Every view that asks for a key, as its operationId ends, with the scope it needs."""
    views = current_app.view_functions
    return {name.replace(".", "_"): scope_of(view) for name, view in views.items() if name not in OPEN_ENDPOINTS}


def _one_name_each(spec: dict[str, Any]) -> dict[str, Any]:
    """APIFlask names a schema after the one that refers to it (Job.JobSpec, PageOfJob.JobSpec); both become JobSpec."""
    prefix = '"#/components/schemas/'
    renamed: dict[str, Any] = json.loads(re.sub(rf'{prefix}\w+\.(\w+)"', rf'{prefix}\1"', json.dumps(spec)))
    schemas: dict[str, Any] = {}
    for name, schema in renamed["components"]["schemas"].items():
        if schemas.setdefault(name.rpartition(".")[2], schema) != schema:
            raise AssertionError(
                f"two different schemas are called {name.rpartition('.')[2]}; rename one of the records"
            )
    renamed["components"]["schemas"] = schemas
    return renamed


_CLOSED = (
    HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)  # fmt: skip


def _complete_operation(operation: dict[str, Any], *, closed: bool, scope: Scope | None) -> None:
    responses = operation["responses"]
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            parameter["schema"]["description"] = _IN_PATH[parameter["name"]]
    operation["security"] = [{"key": [scope.value] if scope else []}] if closed else []
    if closed:
        operation["description"] = "\n\n".join(
            part for part in (operation.get("description"), f"Needs the scope `{scope}`." if scope else None) if part
        )
        for status in _CLOSED:
            responses.setdefault(str(status.value), {"description": status.phrase})
        responses["default"] = {"description": "Any other problem"}
        for status_code, response in responses.items():
            if status_code == "default" or int(status_code) >= 400:
                response["content"] = _PROBLEM
            elif int(status_code) in (204, 304):
                response.pop("content", None)


def _add_examples(operation: dict[str, Any], answers: Mapping[str, Any]) -> None:
    """One example for every answer that has a body: of the record, of the problem, of the text."""
    from api.answers import problem

    for status, response in operation["responses"].items():
        for media_type, media in response.get("content", {}).items():
            named = media["schema"].get("$ref", "").rpartition("/")[2] or media["schema"].get("title", "")
            if media_type == MEDIA_TYPE:
                code = HTTPStatus.INTERNAL_SERVER_ERROR if status == "default" else HTTPStatus(int(status))
                response["content"] = {MEDIA_TYPE: {**media, "example": problem(code)}}
            elif named in answers:
                media["example"] = answers[named]
            elif media_type in _TEXTS:
                media["example"] = _TEXTS[media_type]


def _add_etag(responses: dict[str, Any]) -> None:
    """What api/etags.py does to answers in JSON; of files, `FILE` says it."""
    found = responses.get("200", {})
    if "application/json" in found.get("content", {}) and "headers" not in found:
        found["headers"] = {"ETag": {"description": "Give it as If-None-Match", "schema": _TEXT}}
        responses["304"] = {"description": "Not modified: If-None-Match names what would be sent"}


_TEXTS = {
    EVENT_STREAM: 'id: 7\ndata: {"seq": 7, "type": "progress", "message": "distill 1200/4000"}\n\n',
    "text/plain": 'foundry_jobs{status="running"} 2.0\n',
    "text/html": "<!doctype html>...",
    "text/markdown": "# my-teacher for kiosk\n",
    "application/octet-stream": "(bytes)",
}


def _inline(kind: type[BaseModel]) -> dict[str, Any]:
    """A schema that needs no other component: what it refers to stands in its own $defs."""
    schema = kind.model_json_schema(mode="serialization")
    definitions = schema.pop("$defs", {})
    describe_fields(definitions | {kind.__name__: schema})
    expanded: dict[str, Any] = _expanded(schema, definitions)
    return expanded


def _expanded(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            here = {key: value for key, value in node.items() if key != "$ref"}  # what the field says of itself
            return _expanded(definitions[node["$ref"].rsplit("/", 1)[1]], definitions) | here
        return {key: _expanded(value, definitions) for key, value in node.items()}
    return [_expanded(item, definitions) for item in node] if isinstance(node, list) else node
