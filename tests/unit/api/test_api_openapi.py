"""The OpenAPI document: made from the code, whole, and without a reference that leads nowhere."""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema_rs import Draft202012Validator

from api.access import KeyBody, MemberBody, ProjectBody, QuotaBody, RoleBody, RotateBody
from api.auth import OPEN_ENDPOINTS, scope_of
from api.examples import EXAMPLES
from api.jobs import CloneBody
from api.models import ModelBody
from api.targets import TargetBody
from api.uploads import UploadBody
from api.variants import AliasBody
from api.webhooks import EndpointBody, EndpointChange
from foundry.spec.access import Role, Scope
from foundry.spec.evaluation import EvaluationSpec
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, Status
from foundry.spec.measurement import NewMeasurement
from foundry.spec.record import Record, parse


@pytest.fixture
def spec(anonymous: FlaskClient) -> dict[str, Any]:
    found: dict[str, Any] = anonymous.get("/openapi.json").get_json()
    return found


def _operations(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


def test_the_document_has_every_route_and_no_other(app: Flask, spec: dict[str, Any]) -> None:
    routed = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint not in ("openapi.spec", "docs.page")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in _operations(spec)} == routed
    assert spec["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere_and_every_schema_is_used(spec: dict[str, Any]) -> None:
    schemas = spec["components"]["schemas"]
    names = {reference.removeprefix("#/components/schemas/") for reference in _references(spec)}
    assert names == set(schemas)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in schemas)
    assert {"JobSpec", "Job", "Problem", "PageOfJobEvent", "JobEstimate"} <= names


def test_every_operation_is_described_and_named_once(spec: dict[str, Any]) -> None:
    operations = list(_operations(spec))
    identifiers = [operation["operationId"] for _, _, operation in operations]
    assert len(set(identifiers)) == len(identifiers)
    for path, method, operation in operations:
        assert operation["summary"].endswith("."), (path, method)
        in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert all(p["schema"].get("description") for p in operation["parameters"]), (path, method)


def _fields(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of every schema, wherever it stands, with its place; examples aside."""
    if isinstance(node, dict):
        described = node["properties"] if node.get("type") == "object" and "properties" in node else {}
        yield from ((f"{place}/{name}", field) for name, field in described.items())
        for key, value in node.items():
            if key not in ("example", "examples"):
                yield from _fields(value, f"{place}/{key}")
    elif isinstance(node, list):
        for number, item in enumerate(node):
            yield from _fields(item, f"{place}/{number}")


def test_no_schema_and_no_field_is_without_description(spec: dict[str, Any]) -> None:
    fields = list(_fields(spec))
    silent = [place for place, field in fields if not field.get("description")]
    assert not silent, f"say in the line under each what its name does not: {silent}"
    assert len(fields) > 1000
    assert all(schema.get("description") for schema in spec["components"]["schemas"].values())


def test_a_field_of_a_document_that_stands_by_itself_says_what_it_is_there(spec: dict[str, Any]) -> None:
    answer = spec["paths"]["/v1/variants/{variant_id}/manifest"]["get"]["responses"]["200"]
    fields = answer["content"]["application/json"]["schema"]["properties"]
    assert fields["lineage"]["description"] == "What it was made from."
    assert fields["lineage"]["properties"]["teacher"]["description"] == "As the spec names it."


@pytest.mark.parametrize("values", [Scope, Role, Status, EventType])
def test_every_value_of_an_enumeration_is_described(spec: dict[str, Any], values: type[StrEnum]) -> None:
    description = spec["components"]["schemas"][values.__name__]["description"]
    assert re.findall(r"^- `(.+?)`: .", description, re.MULTILINE) == list(values)


def test_fields_are_described_by_the_lines_under_them(spec: dict[str, Any]) -> None:
    schemas = spec["components"]["schemas"]
    meanings = {
        (name, field): text.get("description", "")
        for name, schema in schemas.items() for field, text in schema.get("properties", {}).items()
    }  # fmt: skip
    assert "in the answer to a submit" in meanings["Job", "queue_position"]
    assert meanings["JobSpec", "teacher"].startswith("A local folder, or ORG/NAME")
    assert meanings["PageOfJob", "next"].startswith("The `after`")  # of a generic record
    assert meanings["TargetBody", "max_bytes"] == meanings["CustomTarget", "max_bytes"] != ""  # of a base
    assert meanings["Problem", "retryable"]  # of a record that the API alone knows


def test_every_closed_operation_needs_the_key_and_names_its_problems(app: Flask, spec: dict[str, Any]) -> None:
    assert spec["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    scopes = {scope_of(view) for name, view in app.view_functions.items() if name not in OPEN_ENDPOINTS}
    assert {*Scope, None} >= scopes >= set(Scope) - {Scope.TARGETS_WRITE}
    for path, _, operation in _operations(spec):
        closed = path not in ("/healthz", "/readyz")
        assert len(operation["security"]) == closed
        assert {scope for one in operation["security"] for scope in one["key"]} <= set(Scope)
        responses = operation["responses"]
        assert any(status.startswith("2") for status in responses)
        if closed:
            assert {"401", "403", "422", "429", "503", "default"} <= set(responses)
            assert ("404" in responses) == ("{" in path)
            for status, response in responses.items():
                if status == "default" or int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
    assert not any(endpoint.startswith(("jobs", "datasets", "variants")) for endpoint in OPEN_ENDPOINTS)


def test_bodies_have_schemas(spec: dict[str, Any]) -> None:
    def body(path: str) -> dict[str, Any]:
        content: dict[str, Any] = spec["paths"][path]["post"]["requestBody"]["content"]
        return content

    for path in ("/v1/customization/jobs", "/v1/customization/estimates"):
        assert body(path)["application/json"]["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    assert body("/v1/datasets")["application/octet-stream"]["schema"]["format"] == "binary"
    assert "teacher" in spec["components"]["schemas"]["JobSpec"]["required"]
    assert spec["components"]["schemas"]["JobSpec"]["additionalProperties"] is False


def test_answers_of_the_service_fit_their_schema_by_name(spec: dict[str, Any], client: FlaskClient) -> None:
    page = client.get("/v1/targets").get_json()
    assert set(page) == set(spec["components"]["schemas"]["PageOfTarget"]["properties"])
    assert set(page["data"][0]) == set(spec["components"]["schemas"]["Target"]["properties"])


def test_the_page_for_people_names_every_path_and_loads_nothing(anonymous: FlaskClient, spec: dict[str, Any]) -> None:
    page = anonymous.get("/docs").get_data(as_text=True)
    assert all(path in page for path in spec["paths"])
    assert "<script" not in page
    leads = set(re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">)]+)', page))
    assert {place for place in leads if not place.startswith("#")} == {"/openapi.json"}
    assert {place[1:] for place in leads if place.startswith("#")} <= set(re.findall(r'id="(\w+)"', page))
    assert spec["components"]["schemas"]["Metrics"]["properties"]["load_ms"]["description"] in page
    assert "speech-team" in page  # examples of bodies stand there, too


def _validator(spec: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    """Of one schema, which may refer to the document's components."""
    return Draft202012Validator({**schema, "components": spec["components"]})


def test_every_answer_has_an_example_that_fits_its_schema(spec: dict[str, Any]) -> None:
    for path, method, operation in _operations(spec):
        with_body = [
            (status, media_type, media)
            for status, response in operation["responses"].items()
            for media_type, media in response.get("content", {}).items()
        ]
        succeeds = [status for status in operation["responses"] if status.startswith("2")]
        assert succeeds and (with_body or succeeds == ["204"]), (method, path)
        for status, media_type, media in with_body:
            assert "example" in media, f"{method} {path} {status} {media_type}: give it one in api/answers.py"
            found = [error.message for error in _validator(spec, media["schema"]).iter_errors(media["example"])]
            assert not found, (method, path, status, found)
            if media_type == "application/problem+json" and status != "default":
                assert str(media["example"]["status"]) == status


BODIES: tuple[type[Record], ...] = (
    JobSpec, EvaluationSpec, CloneBody, UploadBody, ModelBody, TargetBody, AliasBody, NewMeasurement, EndpointBody,
    EndpointChange, ProjectBody, QuotaBody, MemberBody, RoleBody, KeyBody, RotateBody,
)  # fmt: skip


@pytest.mark.parametrize("kind", BODIES)
def test_every_body_has_an_example_that_is_accepted(kind: type[Record]) -> None:
    assert parse(kind, EXAMPLES[kind.__name__])


def test_no_body_lacks_an_example(spec: dict[str, Any]) -> None:
    bodies = {
        media["schema"]["$ref"].rpartition("/")[2]
        for _, _, operation in _operations(spec)
        for media in operation.get("requestBody", {}).get("content", {}).values()
        if "$ref" in media["schema"]
    }
    assert bodies == set(EXAMPLES) == {kind.__name__ for kind in BODIES}
