import json
import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from foundry.client.client import Foundry
from foundry.errors import DownloadCorrupt, NotFound, ServiceUnreachable, StorageFull
from tests.unit.client.records import asked_for, file_path, publish
from tests.unit.client.tiny_service import Answer, Seen, TinyService, problem, ranged

MODEL = os.urandom(300_000)
FILES = {"phone.gguf": MODEL, "safetensors/model.safetensors": os.urandom(100_000), "README.md": b"card", "empty": b""}


def test_download_brings_every_file_and_the_manifest(service: TinyService, foundry: Foundry, tmp_path: Path) -> None:
    manifest = publish(service, FILES)
    folder = foundry.variants.download("var_1", tmp_path / "variant", progress=False)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {**FILES, "manifest.json": manifest}


def test_download_brings_only_the_files_that_match(service: TinyService, foundry: Foundry, tmp_path: Path) -> None:
    publish(service, FILES)
    foundry.variants.download("var_1", tmp_path, files=["*.gguf", "README.md"], progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "manifest.json", "phone.gguf"]
    with pytest.raises(NotFound, match=r"no file '\*\.onnx'; it has phone\.gguf"):
        foundry.variants.download("var_1", tmp_path, files=["*.onnx"], progress=False)


def test_download_continues_where_the_connection_was_cut(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    publish(service, {"phone.gguf": MODEL})
    cuts = [100_000, 50_000]
    service.routes[file_path("phone.gguf")] = lambda seen: ranged(MODEL, seen, cut=cuts.pop(0) if cuts else None)
    foundry.variants.download("var_1", tmp_path, progress=False)
    assert (tmp_path / "phone.gguf").read_bytes() == MODEL
    ranges = [seen.headers.get("range") for seen in asked_for(service, "phone.gguf")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert not list(tmp_path.glob("*.partial"))


def test_download_continues_the_partial_file_of_an_earlier_process(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    publish(service, {"phone.gguf": MODEL})
    service.routes[file_path("phone.gguf")] = lambda seen: ranged(
        MODEL, seen, cut=100_000 if "range" not in seen.headers else 0
    )
    with pytest.raises(ServiceUnreachable):
        foundry.variants.download("var_1", tmp_path, progress=False)
    assert (tmp_path / "phone.gguf.partial").read_bytes() == MODEL[:100_000]
    assert not (tmp_path / "phone.gguf").exists() and not (tmp_path / "manifest.json").exists()

    publish(service, {"phone.gguf": MODEL})
    service.seen.clear()
    with Foundry(service.url, "k") as next_process:
        next_process.variants.download("var_1", tmp_path, progress=False)
    assert (tmp_path / "phone.gguf").read_bytes() == MODEL
    (again,) = asked_for(service, "phone.gguf")
    assert (again.headers["range"], again.headers["if-range"]) == ("bytes=100000-", f'"{sha256(MODEL).hexdigest()}"')


def test_download_starts_over_when_the_service_sends_everything(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    publish(service, {"phone.gguf": MODEL})
    service.routes[file_path("phone.gguf")] = lambda seen: Answer(body=MODEL)  # no Range on this server
    (tmp_path / "phone.gguf.partial").write_bytes(b"x" * 1000)
    foundry.variants.download("var_1", tmp_path, progress=False)
    assert (tmp_path / "phone.gguf").read_bytes() == MODEL


def test_download_starts_over_when_the_partial_file_is_too_long(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    publish(service, {"phone.gguf": MODEL})
    (tmp_path / "phone.gguf.partial").write_bytes(MODEL + b"more")
    foundry.variants.download("var_1", tmp_path, progress=False)
    assert (tmp_path / "phone.gguf").read_bytes() == MODEL


def test_download_skips_files_that_are_right_and_replaces_those_that_are_not(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    publish(service, FILES)
    foundry.variants.download("var_1", tmp_path, progress=False)
    (tmp_path / "README.md").write_bytes(b"CARD")
    service.seen.clear()
    foundry.variants.download("var_1", tmp_path, progress=False)
    assert not asked_for(service, "phone.gguf") and len(asked_for(service, "README.md")) == 1
    assert (tmp_path / "README.md").read_bytes() == b"card"


@pytest.mark.parametrize("at", [0, 150_000, 299_999], ids=["first-byte", "middle", "last-byte"])
def test_download_is_corrupt_and_leaves_nothing_when_a_byte_is_flipped(
    service: TinyService, foundry: Foundry, tmp_path: Path, at: int
) -> None:
    publish(service, {"phone.gguf": MODEL})
    flipped = bytearray(MODEL)
    flipped[at] ^= 1
    service.routes[file_path("phone.gguf")] = lambda seen: Answer(body=bytes(flipped))
    with pytest.raises(DownloadCorrupt, match=r"phone\.gguf: its sha256 is"):
        foundry.variants.download("var_1", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_download_is_corrupt_when_the_partial_file_was(service: TinyService, foundry: Foundry, tmp_path: Path) -> None:
    publish(service, {"phone.gguf": MODEL})
    (tmp_path / "phone.gguf.partial").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadCorrupt):
        foundry.variants.download("var_1", tmp_path, progress=False)
    foundry.variants.download("var_1", tmp_path, progress=False)
    assert (tmp_path / "phone.gguf").read_bytes() == MODEL


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=MODEL + b"more"),
        Answer(status=206, body=MODEL[5:], headers={"Content-Range": f"bytes 5-{len(MODEL) - 1}/{len(MODEL)}"}),
        Answer(status=416),
    ],
    ids=["too-long", "wrong-start", "range-not-satisfiable"],
)
def test_download_is_corrupt_when_the_service_sends_another_range(
    service: TinyService, foundry: Foundry, tmp_path: Path, answer: Answer
) -> None:
    publish(service, {"phone.gguf": MODEL})
    (tmp_path / "phone.gguf.partial").write_bytes(MODEL[:1000])
    service.on(file_path("phone.gguf"), answer)
    with pytest.raises(DownloadCorrupt):
        foundry.variants.download("var_1", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_download_is_corrupt_when_the_manifest_is_not_the_recorded_one(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    manifest = json.loads(publish(service, {"phone.gguf": MODEL}))
    manifest["files"][0]["sha256"] = sha256(b"evil").hexdigest()
    service.on(file_path("manifest.json"), Answer(body=json.dumps(manifest).encode()))
    with pytest.raises(DownloadCorrupt, match=r"manifest\.json of var_1: its sha256"):
        foundry.variants.download("var_1", tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "path",
    ["../evil", "/etc/evil", "a/../../evil", "a//b", "./a", "", "C:\\evil", "a\\..\\evil", "nul\0", "x.partial", "a/"],
)
def test_download_refuses_a_path_that_leads_out_of_the_folder(
    service: TinyService, foundry: Foundry, tmp_path: Path, path: str
) -> None:
    publish(service, {"good": b"good", path: b"evil"})
    with pytest.raises(DownloadCorrupt, match="not a plain relative path"):
        foundry.variants.download("var_1", tmp_path / "in" / "folder", progress=False)
    assert list(tmp_path.rglob("*")) == []


def test_download_refuses_a_manifest_that_lists_itself(service: TinyService, foundry: Foundry, tmp_path: Path) -> None:
    listed = json.dumps({"files": [{"path": "manifest.json", "bytes": 1, "sha256": "0"}]}).encode()
    publish(service, {})
    service.on(file_path("manifest.json"), Answer(body=listed))
    record = json.loads(service.routes["/v1/variants/var_1"](Seen("GET", "", {}, {}, b"")).body)
    record["manifest_sha256"] = sha256(listed).hexdigest()
    service.on("/v1/variants/var_1", Answer(body=json.dumps(record).encode()))
    with pytest.raises(DownloadCorrupt, match="or itself"):
        foundry.variants.download("var_1", tmp_path, progress=False)


def test_download_stops_the_other_files_when_one_fails(service: TinyService, foundry: Foundry, tmp_path: Path) -> None:
    publish(service, {"a": MODEL, "b": MODEL[:1000]})
    service.on(file_path("b"), problem(404, "not_found", "blob b is gone"))
    gate = threading.Event()

    def slow(seen: Seen) -> Answer:
        gate.wait(5)
        return ranged(MODEL, seen)

    service.routes[file_path("a")] = slow
    threading.Timer(0.3, gate.set).start()
    with pytest.raises(NotFound, match="blob b is gone"):
        foundry.variants.download("var_1", tmp_path, progress=False)
    assert not (tmp_path / "a").exists() and not (tmp_path / "manifest.json").exists()


def test_download_refuses_before_the_first_byte_when_the_disk_is_too_small(
    service: TinyService, foundry: Foundry, tmp_path: Path
) -> None:
    publish(service, {})
    huge = json.dumps({"files": [{"path": "huge.gguf", "bytes": 10**18, "sha256": "0" * 64}]}).encode()
    service.on(file_path("manifest.json"), Answer(body=huge))
    record = json.loads(service.routes["/v1/variants/var_1"](Seen("GET", "", {}, {}, b"")).body)
    record["manifest_sha256"] = sha256(huge).hexdigest()
    service.on("/v1/variants/var_1", Answer(body=json.dumps(record).encode()))
    with pytest.raises(StorageFull, match="1,000,000,000,000,000,000"):
        foundry.variants.download("var_1", tmp_path, progress=False)
    assert not asked_for(service, "huge.gguf")


def test_download_reports_bytes_until_all_are_there(service: TinyService, foundry: Foundry, tmp_path: Path) -> None:
    publish(service, {"phone.gguf": MODEL})
    told: list[tuple[str, int, int]] = []
    foundry.variants.download("var_1", tmp_path, progress=lambda *report: told.append(report))
    assert told[-1] == ("phone.gguf", len(MODEL), len(MODEL))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
