"""Variants, their manifest, and files that can be fetched in parts."""

import base64
import hashlib
import json
import socket
from contextlib import closing
from pathlib import Path, PosixPath
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from gunicorn.http.wsgi import FileWrapper

from api.downloads import send_artifact
from foundry.errors import NotFound
from foundry.spec.resources import Variant
from foundry.spec.variant import Artifact
from tests.serving import Serving

BYTES = bytes(range(256)) * 40
DIGEST = hashlib.sha256(BYTES).hexdigest()


@pytest.fixture
def variant(serving: Serving) -> Variant:
    return serving.publish(
        serving.submit(), {"kiosk-q4_k_m.gguf": BYTES, "safetensors/tök.json": b"{}", "README.md": b"# x"}
    )


def _file(variant: Variant, path: str = "kiosk-q4_k_m.gguf") -> str:
    return f"/v1/variants/{variant.id}/files/{path}"


def test_a_variant_is_listed_with_the_digest_of_every_file(
    serving: Serving, client: FlaskClient, variant: Variant
) -> None:
    other = serving.publish(serving.submit(), {"a": b"a"})
    assert [v["id"] for v in client.get("/v1/variants").get_json()["data"]] == [other.id, variant.id]
    (listed,) = client.get(f"/v1/variants?job_id={variant.job_id}").get_json()["data"]
    assert listed == client.get(f"/v1/variants/{variant.id}").get_json()
    assert {file["path"]: file["sha256"] for file in listed["files"]}["kiosk-q4_k_m.gguf"] == DIGEST
    assert "manifest.json" in [file["path"] for file in listed["files"]]
    assert client.get(f"/v1/customization/jobs/{variant.job_id}").get_json()["variant_ids"] == [variant.id]


def test_a_manifest_is_the_file_that_ships(client: FlaskClient, variant: Variant) -> None:
    with client.get(_file(variant, "manifest.json")) as shipped:
        assert hashlib.sha256(shipped.get_data()).hexdigest() == variant.manifest_sha256
        assert client.get(f"/v1/variants/{variant.id}/manifest").get_json() == json.loads(shipped.get_data())


def test_a_file_comes_whole_with_its_digest(client: FlaskClient, variant: Variant) -> None:
    with client.get(_file(variant)) as response:
        assert response.status_code == 200
        assert response.get_data() == BYTES
        assert response.headers["ETag"] == f'"{DIGEST}"'
        assert response.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(DIGEST)).decode()}:"
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["Content-Length"] == str(len(BYTES))
        assert response.headers["Content-Disposition"] == "attachment; filename=kiosk-q4_k_m.gguf"
        assert "immutable" in response.headers["Cache-Control"]
        assert response.content_type == "application/octet-stream"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-", 100, len(BYTES)),
        ("bytes=-7", len(BYTES) - 7, len(BYTES)),
        ("bytes=5-99999", 5, len(BYTES)),
    ],
)
def test_a_file_comes_in_part_when_a_range_is_asked(
    client: FlaskClient, variant: Variant, asked: str, start: int, end: int
) -> None:
    with client.get(_file(variant), headers={"Range": asked, "If-Range": f'"{DIGEST}"'}) as response:
        assert response.status_code == 206
        assert response.get_data() == BYTES[start:end]
        assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(BYTES)}"
        assert response.headers["Content-Length"] == str(end - start)
        assert response.headers["Repr-Digest"].startswith("sha-256=:")


def test_a_file_comes_whole_when_if_range_names_other_bytes(client: FlaskClient, variant: Variant) -> None:
    with client.get(_file(variant), headers={"Range": "bytes=100-", "If-Range": f'"{"0" * 64}"'}) as response:
        assert response.status_code == 200
        assert response.get_data() == BYTES


def test_a_file_answers_416_with_its_size_when_the_range_is_behind_its_end(
    client: FlaskClient, variant: Variant, refused: Any
) -> None:
    response = client.get(_file(variant), headers={"Range": f"bytes={len(BYTES)}-"})
    assert refused(response, 416)["code"] == "requested_range_not_satisfiable"
    assert response.headers["Content-Range"] == f"bytes */{len(BYTES)}"


def test_a_file_answers_304_when_the_reader_has_it(client: FlaskClient, variant: Variant) -> None:
    with client.get(_file(variant), headers={"If-None-Match": f'"{DIGEST}"'}) as response:
        assert (response.status_code, response.get_data()) == (304, b"")


def test_a_file_answers_412_without_a_byte_of_it_when_if_match_names_other_bytes(
    client: FlaskClient, variant: Variant, refused: Any
) -> None:
    refused(client.get(_file(variant), headers={"If-Match": '"other"'}), 412)
    with client.get(_file(variant), headers={"If-Match": f'"{DIGEST}"'}) as response:
        assert response.get_data() == BYTES


ARTIFACT = Artifact(path="a.gguf", bytes=len(BYTES), sha256=DIGEST)


def test_a_part_for_a_reader_who_has_gone_fails_as_every_write_to_them(app: Flask, tmp_path: Path) -> None:
    (tmp_path / DIGEST).write_bytes(BYTES)
    server = {"wsgi.file_wrapper": FileWrapper}
    with app.test_request_context(headers={"Range": "bytes=50-59"}, environ_overrides=server):
        response = send_artifact(tmp_path / DIGEST, ARTIFACT)
    ours, theirs = socket.socketpair()
    theirs.close()
    with closing(response), ours, pytest.raises(BrokenPipeError):
        sent: Any = response.response
        ours.sendfile(sent.filelike, offset=50, count=10)  # as gunicorn does


class _SweptWhenOpened(PosixPath):
    def open(self, *args: Any, **more: Any) -> Any:
        self.unlink()
        return super().open(*args, **more)


def test_a_part_of_a_file_that_is_swept_meanwhile_is_not_found(app: Flask, tmp_path: Path) -> None:
    (tmp_path / DIGEST).write_bytes(BYTES)
    blob = _SweptWhenOpened(tmp_path / DIGEST)
    with app.test_request_context(headers={"Range": "bytes=100-"}), pytest.raises(NotFound, match=DIGEST):
        send_artifact(blob, ARTIFACT)


def test_a_file_is_described_by_head(client: FlaskClient, variant: Variant) -> None:
    with client.head(_file(variant)) as response:
        assert (response.status_code, response.get_data()) == (200, b"")
        assert response.headers["Content-Length"] == str(len(BYTES))
        assert response.headers["ETag"] == f'"{DIGEST}"'


def test_a_file_in_a_folder_is_named_in_any_script(client: FlaskClient, variant: Variant) -> None:
    with client.get(_file(variant, "safetensors/t%C3%B6k.json")) as response:
        assert response.get_data() == b"{}"
        assert "filename*=UTF-8''t%C3%B6k.json" in response.headers["Content-Disposition"]


@pytest.mark.parametrize(
    "path",
    [
        "missing",
        "../manifest.json",
        "safetensors",
        "..%2f..%2ffoundry.db",
        "%2Fetc%2Fpasswd",
        "kiosk-q4_k_m.gguf%00",
        "README.md/",
    ],
)
def test_a_file_is_not_found_when_the_variant_has_none_of_that_name(
    client: FlaskClient, variant: Variant, refused: Any, path: str
) -> None:
    refused(client.get(_file(variant, path)), 404)
