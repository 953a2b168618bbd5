"""A manifest from outside: whatever it holds, reading it gives a manifest or one error, and no path leads out."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.client.download import place
from foundry.engine.export.manifest import NAME, check_folder, read_manifest
from foundry.errors import ArtifactDamaged, DownloadCorrupt
from tests import manifests

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
PATHS = (
    "../outside", "a/../../outside", "/etc/passwd", "a//b", "./a", "a/.", "", ".", "..", "C:\\x", "a\\b", "a\nb",
    "a\0b",
    "a/../b", "con:x", "x.partial", "a/\x1b[31m", "~/x*", "a|b",
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose manifest is right."""
    folder = tmp_path_factory.mktemp("variant")
    manifests.write_variant(folder, "kiosk")
    return folder


@given(document=JSON)
@settings(max_examples=30, deadline=None)
def test_any_json_is_a_manifest_or_damaged(document: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / NAME).write_text(json.dumps(document))
    with pytest.raises(ArtifactDamaged):
        read_manifest(folder)


@given(data=st.data(), value=JSON)
@settings(max_examples=50, deadline=None)
def test_a_manifest_with_one_field_replaced_is_read_or_damaged(data: st.DataObject, value: Any, sound: Path) -> None:
    document = json.loads((sound / NAME).read_text())
    field = data.draw(st.sampled_from(sorted(document)))
    folder = sound.parent / "replaced"
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps(document | {field: value}))
    with contextlib.suppress(ArtifactDamaged):
        read_manifest(folder)


@given(raw=st.binary(max_size=60))
@settings(max_examples=30, deadline=None)
def test_any_bytes_are_a_manifest_or_damaged(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / NAME).write_bytes(raw)
    with pytest.raises(ArtifactDamaged):
        read_manifest(folder)


def test_a_manifest_nested_without_end_is_damaged(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"a":' * 100_000)
    with pytest.raises(ArtifactDamaged):
        read_manifest(tmp_path)


@pytest.mark.parametrize("path", PATHS)
def test_no_path_of_a_manifest_leads_out_of_its_folder(path: str, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"kiosk")
    document = json.loads((sound / NAME).read_text())
    document["files"][0]["path"] = path
    folder = tmp_path / "variant"
    folder.mkdir()
    (folder / NAME).write_text(json.dumps(document))
    with pytest.raises(ArtifactDamaged):
        check_folder(folder)
    with pytest.raises(DownloadCorrupt):
        place(folder, path)
