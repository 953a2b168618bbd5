"""Uploads: what is kept, and that nothing is when the data, its size or its kind is wrong."""

import gzip
import hashlib
import io
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from flask import Flask
from flask.testing import FlaskClient
from pyarrow import parquet
from sqlalchemy import func, select

from api.app import create_app
from api.state import State
from foundry.store.settings import Settings
from foundry.store.tables import DatasetRow, IdempotencyRow
from tests.serving import DATA, Serving


def _kept(serving: Serving) -> tuple[int, int, list[Path]]:
    """Rows of datasets, rows of keys, files of artifacts."""
    with serving.memory.database.read() as session:
        rows, keys = (session.scalar(select(func.count()).select_from(table)) for table in (DatasetRow, IdempotencyRow))
    return rows or 0, keys or 0, sorted(p for p in serving.settings.artifacts.rglob("*") if p.is_file())


def test_an_upload_becomes_a_dataset_when_every_line_is_sound(serving: Serving, client: FlaskClient) -> None:
    response = client.post("/v1/datasets?name=domain.jsonl", data=DATA)
    assert response.status_code == 201
    made = response.get_json()
    assert (made["name"], made["format"], made["documents"], made["bytes"]) == ("domain.jsonl", "jsonl", 2, len(DATA))
    assert made["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert client.get(f"/v1/datasets/{made['id']}").get_json() == made
    assert serving.memory.datasets.file(serving.project, made["id"]).read_bytes() == DATA
    _, _, files = _kept(serving)
    assert [file.name for file in files] == [made["sha256"]]  # the staged copy is gone


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("a.parquet", None), ("a", "application/vnd.apache.parquet"), ("a.txt", "application/octet-stream")],
    ids=["by its name", "by its type", "by its first bytes"],
)
def test_a_parquet_file_is_read_as_what_it_is(client: FlaskClient, name: str, media_type: str | None) -> None:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([{"text": "one"}, {"text": "two"}]), file)
    response = client.post(f"/v1/datasets?name={name}", data=file.getvalue(), content_type=media_type)
    made = response.get_json()
    assert (response.status_code, made["format"], made["documents"]) == (201, "parquet", 2)
    shown = client.get(f"/v1/datasets/{made['id']}/preview").get_json()["data"]
    assert [row["text"] for row in shown] == ["one", "two"]
    assert client.get(f"/v1/datasets/{made['id']}/validation").get_json()["documents"] == 2


@pytest.mark.parametrize(
    ("name", "media_type", "body", "message", "line"),
    [
        ("a.jsonl", None, b"", "data.jsonl is empty", None),
        ("a.txt", None, b" \n\n", "holds no documents", None),
        ("a.jsonl", None, b'{"text": "a"}\n{"text": ', "line 2: not valid JSON", 2),
        ("a", "application/jsonl", b"prose", "line 1: not valid JSON", 1),
        ("a.jsonl", "text/plain", b"prose", "line 1: not valid JSON", 1),
        ("a", None, b'{"text": "a"}\n[]', "line 2: a list instead of an object", 2),
        ("a.txt", None, b"prose\n\xff", "line 2: byte 0xff at column 1 is not UTF-8", 2),
        ("a.txt", None, gzip.compress(b"prose", mtime=0), "line 1: byte 0x8b", 1),
    ],
)
def test_an_upload_leaves_nothing_when_the_data_is_wrong(
    serving: Serving, client: FlaskClient, refused: Any, name: str, media_type: str | None, body: bytes, message: str,
    line: int | None,
) -> None:  # fmt: skip
    before = _kept(serving)
    headers = {"Idempotency-Key": "k"}
    response = client.post(f"/v1/datasets?name={name}", data=body, content_type=media_type, headers=headers)
    problem = refused(response, 422)
    assert problem["code"] == "invalid_data"
    assert message in problem["detail"]
    assert problem.get("line") == line
    assert problem["errors"][0]["pointer"] == "/data"
    assert _kept(serving) == before
    # The key is still free: the mended file may use it.
    assert client.post(f"/v1/datasets?name={name}", data=DATA, headers=headers).status_code == 201


@pytest.mark.parametrize(
    ("query", "pointer"), [("", "/query/name"), ("?name=", "/query/name"), ("?name=a&title=b", "/query/title")]
)
def test_an_upload_is_refused_when_its_query_is_wrong(
    serving: Serving, client: FlaskClient, refused: Any, query: str, pointer: str
) -> None:
    before = _kept(serving)
    assert refused(client.post(f"/v1/datasets{query}", data=DATA), 422)["errors"][0]["pointer"] == pointer
    assert _kept(serving) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/zip"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_an_upload_is_refused_when_it_is_wrapped(
    serving: Serving, client: FlaskClient, refused: Any, headers: dict[str, str]
) -> None:
    before = _kept(serving)
    assert "as it is" in refused(client.post("/v1/datasets?name=a", data=DATA, headers=headers), 415)["detail"]
    assert _kept(serving) == before


@pytest.mark.parametrize("says_length", [True, False], ids=["with Content-Length", "in chunks"])
def test_an_upload_leaves_nothing_when_too_large(serving: Serving, refused: Any, says_length: bool) -> None:
    before = _kept(serving)
    app = create_app(Settings(home=serving.settings.home, max_upload_bytes=len(DATA) - 1))
    more: dict[str, Any] = {} if says_length else {"environ_overrides": {"wsgi.input_terminated": True}}
    stream = io.BytesIO(DATA)
    response = app.test_client().post(
        "/v1/datasets?name=a.jsonl", input_stream=stream, content_length=len(DATA) if says_length else None,
        headers={"Authorization": f"Bearer {serving.key}"}, **more,
    )  # fmt: skip
    assert f"{len(DATA) - 1} bytes" in refused(response, 413)["detail"]
    assert _kept(serving) == before
    memory: State = app.extensions["foundry"]
    memory.database.close()


def test_an_upload_leaves_nothing_when_the_sender_breaks_off(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    before = _kept(serving)
    response = client.post("/v1/datasets?name=a.jsonl", data=DATA, environ_overrides={"CONTENT_LENGTH": "99"})
    refused(response, 400)
    assert _kept(serving) == before


def test_an_upload_makes_one_dataset_when_sent_again_with_its_key(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = (client.post("/v1/datasets?name=a.jsonl", data=DATA, headers=headers) for _ in range(2))
    assert first.get_json() == second.get_json()
    assert second.status_code == 201
    for url, body in (("/v1/datasets?name=a.jsonl", DATA + DATA), ("/v1/datasets?name=b.jsonl", DATA)):
        assert refused(client.post(url, data=body, headers=headers), 422)["code"] == "idempotency_conflict"
    rows, keys, files = _kept(serving)
    assert (rows, keys, len(files)) == (1, 1, 1)


@pytest.mark.parametrize("key", ["with space", "x" * 256, "né"])
def test_an_idempotency_key_is_refused_when_malformed(client: FlaskClient, refused: Any, key: str) -> None:
    response = client.post("/v1/datasets?name=a.jsonl", data=DATA, headers={"Idempotency-Key": key})
    assert refused(response, 422)["errors"][0]["pointer"] == "/headers/idempotency_key"


def test_a_list_gives_every_dataset_once_when_walked_by_pages(client: FlaskClient) -> None:
    made = [client.post(f"/v1/datasets?name={n}.jsonl", data=DATA).get_json()["id"] for n in range(5)]
    seen, query = [], "?limit=2"
    for _ in range(3):
        page = client.get(f"/v1/datasets{query}").get_json()
        seen += [item["id"] for item in page["data"]]
        query = f"?limit=2&after={page['next']}"
    assert seen == made[::-1]
    assert page["has_more"] is False
    assert page["next"] is None


def test_folders_of_killed_uploads_are_swept_when_a_process_starts(serving: Serving, app: Flask) -> None:
    incoming = serving.settings.artifacts / "incoming"
    old, young = incoming / "upload-old", incoming / "upload-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    second = create_app(serving.settings)
    assert (old.exists(), young.exists()) == (False, True)
    memory: State = second.extensions["foundry"]
    memory.database.close()
