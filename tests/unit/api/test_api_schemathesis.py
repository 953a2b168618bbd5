"""The OpenAPI document is the truth: no answer is a 5xx, and every answer is one that it describes."""

from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from foundry.spec.access import Scope
from tests.serving import Serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 3


# It reads the answers of a WSGI app and does not close them; a server does, and so do the tests of downloads.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_no_operation_answers_outside_its_schema(app: Flask, serving: Serving) -> None:
    key = serving.memory.keys.create(serving.project, "all", set(Scope))[1]
    known = _known(serving)
    headers = {"Authorization": f"Bearer {key}"}
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 70
    for operation in operations:
        if operation.path.endswith("/rotate") or operation.path == "/v1/api_keys/{key_id}":
            continue  # would end the key that this walk uses

        @seed(0)
        @settings(
            max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(), of_the_project=st.booleans())
        def check(case: Any, of_the_project: bool) -> None:
            if of_the_project:  # else every address names something that is not there
                case.path_parameters = {
                    name: known.get(name, value) for name, value in (case.path_parameters or {}).items()
                }
            case.query.pop("wait", None)  # nothing will come
            response = case.call(headers=headers)
            case.validate_response(response, checks=CHECKS, headers=headers)

        check()


def _known(serving: Serving) -> dict[str, Any]:
    memory, project = serving.memory, serving.project
    variant = serving.publish(serving.submit(), {"a.gguf": b"0123456789"})
    return {
        "job_id": serving.submit().id, "evaluation_id": serving.evaluate(variant).id, "dataset_id": serving.dataset.id,
        "variant_id": variant.id, "path": "a.gguf", "form": "json",
        "upload_id": memory.uploads.create(project, "a.jsonl", "dataset", 5).id, "number": 1, "name": "hall",
        "model_id": memory.models.register(project, "m", "hub", "org/name@main", None).id, "project": project,
        "endpoint_id": memory.webhooks.create(project, "https://example.org/hook", ["job.succeeded"]).id,
        "alias": memory.aliases.put(project, "stable", variant.id).name,
    }  # fmt: skip
