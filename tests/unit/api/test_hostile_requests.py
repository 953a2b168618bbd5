"""Names and paths from outside, everywhere that one can be given: none leads out, none reaches a log as two lines."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask.testing import FlaskClient

from api.trace import log_to_stderr
from tests.serving import Serving

WAYS_OUT = (
    "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "/etc/passwd", "....//....//etc/passwd",
    "..\\..\\etc\\passwd",
    "%2e%2e/%2e%2e/etc/passwd", "safetensors/../../../etc/passwd", "file:///etc/passwd", "\u2025/etc/passwd", ".%00./x",
)  # fmt: skip
SECRET = "root:"


@pytest.mark.parametrize("path", WAYS_OUT)
def test_no_path_in_an_address_leads_out(serving: Serving, client: FlaskClient, path: str) -> None:
    variant = serving.publish(serving.submit(), {"weights": b"w"})
    for base in (
        f"/v1/variants/{variant.id}/files", "/v1/variants", "/v1/aliases", "/v1/datasets", "/v1/models", "/v1/targets",
        "/v1/uploads", "/v1/customization/jobs",
    ):  # fmt: skip
        answer = client.get(f"{base}/{path}")
        assert answer.status_code in (404, 405, 422), (base, answer.status_code)
        assert SECRET not in answer.text


@pytest.mark.parametrize("path", WAYS_OUT)
def test_no_path_in_a_body_leads_out(serving: Serving, client: FlaskClient, path: str) -> None:
    before = outside(serving)
    named = [
        ("/v1/customization/jobs", serving.spec(teacher=path)),
        ("/v1/customization/jobs", serving.spec(data=path)),
        ("/v1/customization/jobs", serving.spec(targets=[path])),
        ("/v1/customization/jobs", serving.spec(targets=[{"name": path, "max_params": 20_000}])),
        ("/v1/customization/jobs", serving.spec(formats=[path])),
        ("/v1/customization/jobs", serving.spec(evaluate={"suite": path})),
        ("/v1/customization/estimates", serving.spec(teacher=path)),
        ("/v1/models", {"name": path, "source": path}),
        ("/v1/models", {"name": "x", "files": {path: "up_none"}}),
    ]
    for address, body in named:
        answer = client.post(address, json=body)
        assert answer.status_code in (404, 422), (address, body, answer.text)
        assert SECRET not in answer.text
    # The name of an upload is kept as it is, and is a name only: nothing is written under it.
    answer = client.post("/v1/datasets", query_string={"name": path}, data=b'{"text": "x"}')
    assert answer.status_code in (201, 415, 422)
    assert outside(serving) == before


def outside(serving: Serving) -> set[Path]:
    """What lies beside the service's own folders."""
    return {path for path in serving.folder.iterdir() if path.name not in ("home", "teachers", "domain.jsonl", "kept")}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the service writes to standard error."""
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    log_to_stderr()
    yield written  # type: ignore[misc]
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()


FORGED = '\n{"event": "forged", "level": "info"}\n\x1b[2J'


def test_no_request_writes_a_line_of_its_own_into_the_log(
    serving: Serving, client: FlaskClient, log: io.StringIO
) -> None:
    client.post("/v1/customization/jobs", json=serving.spec(name=FORGED))
    client.get("/v1/variants/%0A%7B%22event%22:%22forged%22%7D")
    client.get("/v1/variants", query_string={"after": FORGED})
    client.post("/v1/datasets", query_string={"name": FORGED}, data=b'{"text": "x"}')
    lines = [json.loads(line) for line in log.getvalue().splitlines()]  # each line is one whole object
    assert len(lines) >= 4 and all(line["event"] != "forged" and "request_id" in line for line in lines)
    assert "\x1b" not in log.getvalue()


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x=1", "a\nb", "a\x00b", "x" * 5000])
def test_no_value_of_the_caller_becomes_a_header(client: FlaskClient, value: str) -> None:
    environment = {"HTTP_X_REQUEST_ID": value}
    answer: Any = client.get("/healthz", environ_overrides=environment)
    assert answer.status_code == 200 and "Set-Cookie" not in answer.headers
    assert len(answer.headers["X-Request-Id"]) <= 64 and "\n" not in answer.headers["X-Request-Id"]
