"""Files in parts: any order, any number of tries, over the restart of the service; and nothing kept that is wrong."""

import hashlib
from base64 import b64encode
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from foundry.store.uploads import SMALLEST_PART_BYTES
from tests.serving import DATA, Serving

ROW = b'{"text": "' + b"x" * 1013 + b'"}\n'
LARGE = ROW * (2 * SMALLEST_PART_BYTES // len(ROW) + 3)
UPLOADS = "/v1/uploads"


def _begin(client: FlaskClient, content: bytes, **more: Any) -> dict[str, Any]:
    body = {"name": "large.jsonl", "bytes": len(content), **more}
    made: dict[str, Any] = client.post(UPLOADS, json=body).get_json()
    return made


def _part(content: bytes, upload: dict[str, Any], number: int) -> bytes:
    return content[(number - 1) * upload["part_bytes"] : number * upload["part_bytes"]]


def _digest(content: bytes) -> str:
    return f"sha-256=:{b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_parts_in_any_order_become_a_dataset_also_over_a_restart(
    serving: Serving, app: Flask, client: FlaskClient, refused: Any
) -> None:
    upload = _begin(client, LARGE, sha256=hashlib.sha256(LARGE).hexdigest())
    url = f"{UPLOADS}/{upload['id']}"
    assert (upload["parts"], upload["missing_parts"], upload["status"]) == (3, [1, 2, 3], "open")
    last = _part(LARGE, upload, 3)
    assert client.put(f"{url}/parts/3", data=last, headers={"Content-Digest": _digest(last)}).status_code == 200
    assert "1, 2" in refused(client.post(f"{url}/complete"), 409)["detail"]

    restarted = create_app(serving.settings)
    again = restarted.test_client()
    again.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {serving.key}"
    found = again.get(f"{UPLOADS}?status=open&sha256={upload['sha256']}").get_json()["data"]
    assert [(one["id"], one["missing_parts"], one["received_bytes"]) for one in found] == [
        (upload["id"], [1, 2], len(last))
    ]
    for number in (2, 1, 1):
        assert again.put(f"{url}/parts/{number}", data=_part(LARGE, upload, number)).status_code == 200
    done = again.post(f"{url}/complete").get_json()
    assert done == again.post(f"{url}/complete").get_json()
    dataset = again.get(f"/v1/datasets/{done['dataset_id']}").get_json()
    assert (dataset["sha256"], dataset["bytes"], dataset["name"]) == (upload["sha256"], len(LARGE), "large.jsonl")
    assert not list((serving.settings.artifacts / "uploads").iterdir())
    restarted.extensions["foundry"].database.close()


@pytest.mark.parametrize(
    ("number", "content", "headers", "status", "pointer"),
    [
        (1, DATA[:-1], {}, 422, "/parts/number"),
        (2, DATA, {}, 422, "/parts/number"),
        (0, DATA, {}, 422, "/parts/number"),
        (1, DATA, {"Content-Digest": _digest(b"other")}, 422, "/headers/content_digest"),
        (1, DATA, {"Content-Digest": "nonsense"}, 422, "/headers/content_digest"),
        (1, DATA * SMALLEST_PART_BYTES.bit_length() * 20_000, {}, 413, None),
    ],
    ids=["short", "no-such-part", "part-zero", "other-digest", "odd-digest", "too-large"],
)
def test_a_part_is_refused_and_not_kept_when_it_is_not_what_it_must_be(
    serving: Serving, client: FlaskClient, refused: Any, number: int, content: bytes, headers: dict[str, str],
    status: int, pointer: str | None,
) -> None:  # fmt: skip
    upload = _begin(client, DATA)
    response = client.put(f"{UPLOADS}/{upload['id']}/parts/{number}", data=content, headers=headers)
    problem = refused(response, status)
    assert [error["pointer"] for error in problem["errors"]] == ([pointer] if pointer else [])
    assert client.get(f"{UPLOADS}/{upload['id']}").get_json()["missing_parts"] == [1]
    assert not [path for path in (serving.settings.artifacts / "uploads").rglob("*") if path.is_file()]


def test_a_wrong_part_can_be_sent_anew_after_the_data_was_refused(client: FlaskClient, refused: Any) -> None:
    bad = DATA[:-2] + b" \n"
    upload = _begin(client, DATA)
    url = f"{UPLOADS}/{upload['id']}"
    client.put(f"{url}/parts/1", data=bad)
    assert refused(client.post(f"{url}/complete"), 422)["line"] == 2
    client.put(f"{url}/parts/1", data=DATA)
    assert client.post(f"{url}/complete").get_json()["dataset_id"].startswith("ds_")
    assert refused(client.put(f"{url}/parts/1", data=DATA), 409)["code"] == "upload_conflict"
    assert refused(client.post(f"{url}/cancel"), 409)["code"] == "upload_conflict"


def test_the_whole_is_refused_when_its_digest_is_not_the_announced_one(client: FlaskClient, refused: Any) -> None:
    upload = _begin(client, DATA, sha256="0" * 64)
    client.put(f"{UPLOADS}/{upload['id']}/parts/1", data=DATA)
    assert "as announced" in refused(client.post(f"{UPLOADS}/{upload['id']}/complete"), 409)["detail"]


def test_a_cancelled_or_late_upload_leaves_no_bytes(serving: Serving, client: FlaskClient, refused: Any) -> None:
    cancelled, late = _begin(client, DATA), _begin(client, DATA)
    for upload in (cancelled, late):
        client.put(f"{UPLOADS}/{upload['id']}/parts/1", data=DATA)
    assert client.post(f"{UPLOADS}/{cancelled['id']}/cancel").get_json()["status"] == "cancelled"
    with serving.memory.database.write() as session:
        session.connection().exec_driver_sql("UPDATE uploads SET expires_at = 0 WHERE status = 'open'")
    serving.memory.uploads.sweep()
    assert client.get(f"{UPLOADS}/{late['id']}").get_json()["status"] == "expired"
    assert refused(client.post(f"{UPLOADS}/{late['id']}/complete"), 409)["code"] == "upload_conflict"
    assert not list((serving.settings.artifacts / "uploads").iterdir())


def test_a_dataset_tells_what_is_in_it_and_shows_some_of_it(client: FlaskClient) -> None:
    rows = b'{"text": "one"}\n{"id": "a", "prompt": "p", "completion": "cc"}\n{"text": "one"}\n'
    rows += b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
    dataset = client.post("/v1/datasets?name=a.jsonl", data=rows).get_json()["id"]
    report = client.get(f"/v1/datasets/{dataset}/validation").get_json()
    kinds = ("text_documents", "completion_documents", "chat_documents", "duplicate_documents")
    assert [report[kind] for kind in kinds] == [2, 1, 1, 1]
    assert (report["documents"], report["characters"], report["longest_characters"]) == (4, 3 + 3 + 3 + 7, 7)
    assert any("mixes" in warning for warning in report["warnings"])
    page = client.get(f"/v1/datasets/{dataset}/preview?limit=2&characters=1").get_json()
    first, second = page["data"]
    assert (first["text"], first["is_cut"], second["key"], second["completion"]) == ("o", True, "a", "c")
    rest = client.get(f"/v1/datasets/{dataset}/preview?after={page['next']}").get_json()
    assert [row["number"] for row in rest["data"]] == [3, 4] and rest["has_more"] is False
    assert rest["data"][1]["messages"][1] == {"role": "assistant", "content": "hello"}


def test_a_deleted_dataset_is_gone_and_its_bytes_follow_when_nothing_holds_them(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    first, second = (client.post("/v1/datasets?name=a.jsonl", data=DATA).get_json() for _ in range(2))
    blob = serving.memory.artifacts.path(first["sha256"])
    job = serving.submit(data=first["id"])
    client.post("/v1/customization/jobs", json=serving.spec(data=first["id"]))
    assert refused(client.delete(f"/v1/datasets/{first['id']}"), 409)["code"] == "in_use"
    for listed in client.get("/v1/customization/jobs").get_json()["data"]:
        client.post(f"/v1/customization/jobs/{listed['id']}/cancel")
    assert client.delete(f"/v1/datasets/{first['id']}").status_code == 204
    refused(client.get(f"/v1/datasets/{first['id']}"), 404)
    _age(serving, blob)
    serving.memory.removal.sweep()
    assert blob.exists()  # the second dataset has the same bytes
    client.delete(f"/v1/datasets/{second['id']}")
    client.delete(f"/v1/datasets/{serving.dataset.id}")
    serving.memory.removal.sweep()
    assert blob.exists()  # for an hour: somebody may be about to use them
    _age(serving, blob)
    serving.memory.removal.sweep()
    assert not blob.exists()
    assert job.id


def _age(serving: Serving, blob: Any) -> None:
    import os

    os.utime(blob, (0, 0))
    with serving.memory.database.write() as session:
        session.connection().exec_driver_sql("UPDATE garbage SET since = 0")
