import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from foundry.client.client import Foundry
from foundry.errors import (
    IdempotencyConflict,
    IllegalTransition,
    InvalidData,
    InvalidSpec,
    NotFound,
    RequestFailed,
    ServiceError,
    ServiceUnreachable,
    Unauthorized,
    UserError,
)
from tests.unit.client.records import SPEC, job, page
from tests.unit.client.tiny_service import Answer, TinyService, document, problem

JOBS = "/v1/customization/jobs"


def test_call_sends_the_key_and_reads_the_record(service: TinyService, foundry: Foundry) -> None:
    service.on(f"{JOBS}/job_1", document({**job("running"), "a_field_of_tomorrow": 1}))
    assert foundry.jobs.get("job_1").status == "running"
    assert service.seen[0].headers["authorization"] == "Bearer fdy_k_secret"
    assert "secret" not in repr(foundry)


def test_create_keeps_one_idempotency_key_when_the_answer_is_cut(service: TinyService, foundry: Foundry) -> None:
    service.on(
        JOBS, Answer(body=b"x" * 100, cut=10), problem(503, "database_unavailable", "busy"), document(job(), 201)
    )
    assert foundry.jobs.create(SPEC).id == "job_1"
    keys = [seen.headers["idempotency-key"] for seen in service.seen]
    assert len(keys) == 3 and len(set(keys)) == 1
    foundry.jobs.create(SPEC)
    assert service.seen[-1].headers["idempotency-key"] != keys[0]


def test_create_sends_what_the_user_wrote_without_defaults(service: TinyService, foundry: Foundry) -> None:
    service.on(JOBS, document(job(), 201))
    foundry.jobs.create(teacher=Path("/models/teacher"), data="ds_1", targets=["smartphone"], distill=None)
    assert json.loads(service.seen[0].body) == {**SPEC, "distill": None}


def test_create_refuses_an_unknown_field_before_anything_is_sent(service: TinyService, foundry: Foundry) -> None:
    with pytest.raises(InvalidSpec) as refused:
        foundry.jobs.create(**SPEC, taget="x")
    assert [p.pointer for p in refused.value.problems] == ["/taget"] and not service.seen


def test_create_refuses_a_spec_and_fields_at_once(foundry: Foundry) -> None:
    with pytest.raises(TypeError, match="not both"):
        foundry.jobs.create(SPEC, seed=1)


def test_upload_sends_the_whole_file_again_under_the_same_key(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    dataset = {
        "id": "ds_1", "name": "a.jsonl", "format": "jsonl", "bytes": 9, "sha256": "0", "documents": 1,
        "created_at": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    service.on("/v1/datasets", Answer(body=b"x" * 100, cut=1), document(dataset, 201))
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "hello"}\n' * 200_000)
    assert foundry.datasets.upload(path).id == "ds_1"
    assert [seen.body for seen in service.seen] == [path.read_bytes()] * 2
    assert len({seen.headers["idempotency-key"] for seen in service.seen}) == 1
    assert service.seen[0].query == {"name": "a.jsonl"}
    assert service.seen[0].headers["content-length"] == str(path.stat().st_size)


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_upload_names_the_file_when_it_holds_nothing(
    service: TinyService, foundry: Foundry, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "gone.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidData, match=r"gone\.jsonl"):
        foundry.datasets.upload(path)
    assert not service.seen


def test_call_waits_as_long_as_retry_after_says(service: TinyService, foundry: Foundry) -> None:
    service.on(
        f"{JOBS}/job_1/cancel", problem(429, "rate_limited", "slow down", retry_after="1"), document(job("cancelled"))
    )
    began = time.monotonic()
    assert foundry.jobs.cancel("job_1").status == "cancelled"
    assert 1.0 <= time.monotonic() - began < 3.0


def test_call_waits_until_the_date_in_retry_after(service: TinyService, foundry: Foundry) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    service.on(f"{JOBS}/job_1", problem(503, "database_unavailable", "down", retry_after=until), document(job()))
    began = time.monotonic()
    foundry.jobs.get("job_1")
    assert 0.9 <= time.monotonic() - began < 4.0


def test_call_reports_at_once_when_retry_after_is_beyond_patience(service: TinyService, foundry: Foundry) -> None:
    service.on(f"{JOBS}/job_1", problem(503, "maintenance", "back tomorrow", retry_after="86400"))
    with pytest.raises(RequestFailed, match="back tomorrow"):
        foundry.jobs.get("job_1")
    assert len(service.seen) == 1


def test_call_gives_up_after_its_retries(service: TinyService, foundry: Foundry) -> None:
    service.on(f"{JOBS}/job_1", problem(503, "database_unavailable", "down", retry_after="0"))
    with pytest.raises(RequestFailed) as refused:
        foundry.jobs.get("job_1")
    assert (refused.value.status, refused.value.request_id, len(service.seen)) == (503, "req_1", 3)


def test_order_without_a_key_is_not_repeated_when_it_may_have_arrived(service: TinyService, foundry: Foundry) -> None:
    service.on(f"{JOBS}/job_1/cancel", Answer(body=b"x" * 100, cut=0))
    with pytest.raises(ServiceUnreachable):
        foundry.jobs.cancel("job_1")
    assert len(service.seen) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", Unauthorized),
        (404, "not_found", NotFound),
        (409, "illegal_transition", IllegalTransition),
        (422, "unknown_target", UserError),
        (422, "idempotency_conflict", IdempotencyConflict),
        (500, "internal_error", RequestFailed),
    ],
    ids=["401", "404", "409", "422", "reused-key", "500"],
)
def test_refusal_is_caught_by_the_error_of_its_reason(
    service: TinyService, foundry: Foundry, status: int, code: str, kind: type[Exception]
) -> None:
    fault = {"pointer": "/targets/0", "code": code, "detail": "is wrong"}
    service.on(f"{JOBS}/job_1", problem(status, code, "is wrong", errors=[fault]))
    with pytest.raises(kind) as refused:
        foundry.jobs.get("job_1")
    error = refused.value
    assert isinstance(error, RequestFailed) and error.status == status and str(error) == "is wrong"
    assert [(p.pointer, p.code) for p in error.problems] == [("/targets/0", code)]


def test_refusal_says_who_answered_when_it_was_not_the_service(service: TinyService, foundry: Foundry) -> None:
    service.on(f"{JOBS}/job_1", Answer(status=500, body=b"<html>nginx</html>"))
    with pytest.raises(RequestFailed, match=rf"HTTP 500 .* from {service.url}"):
        foundry.jobs.get("job_1")


def test_read_names_the_field_when_the_answer_is_not_understood(service: TinyService, foundry: Foundry) -> None:
    service.on(f"{JOBS}/job_1", document({**job(), "status": "dreaming"}))
    with pytest.raises(ServiceError, match=r"not a Job \(/status"):
        foundry.jobs.get("job_1")


def test_timeout_says_that_the_service_is_busy(service: TinyService) -> None:
    service.on(f"{JOBS}/job_1", Answer(silence_s=0.5))
    with (
        Foundry(service.url, "k", timeout=0.1, retries=0) as impatient,
        pytest.raises(ServiceUnreachable, match="in time"),
    ):
        impatient.jobs.get("job_1")


def test_refused_connection_names_the_address_and_the_way_out() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Foundry(url, "k", retries=0) as client, pytest.raises(ServiceUnreachable) as error:
        client.jobs.get("job_1")
    assert url in str(error.value) and "foundry up" in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8321", "ftp://example.org", "http://[::1"])
def test_client_refuses_what_is_not_an_address(url: str) -> None:
    with pytest.raises(ServiceUnreachable, match="http://HOST:PORT"):
        Foundry(url, "k")


def test_list_reads_page_after_page_and_stops_at_the_limit(service: TinyService, foundry: Foundry) -> None:
    first, second = page(job(id="job_3"), job(id="job_2"), next="job_2"), page(job(id="job_1"))
    service.routes[JOBS] = lambda seen: document(second if seen.query.get("after") == "job_2" else first)
    assert [j.id for j in foundry.jobs.list(status="queued")] == ["job_3", "job_2", "job_1"]
    assert [seen.query.get("after") for seen in service.seen] == [None, "job_2"]
    assert {seen.query["status"] for seen in service.seen} == {"queued"}
    assert [j.id for j in foundry.jobs.list(limit=2)] == ["job_3", "job_2"]
    assert len(service.seen) == 3


def test_name_of_an_object_never_adds_a_level_to_the_path(service: TinyService, foundry: Foundry) -> None:
    with pytest.raises(NotFound):
        foundry.jobs.get("a/../b?c#d")
    assert service.seen[0].path == f"{JOBS}/a/../b?c#d" and not service.seen[0].query
