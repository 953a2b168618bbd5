"""What a run leaves is believed only when every byte is as its manifest says, and every target is there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foundry.engine.export.manifest import verify_folder
from foundry.engine.export.signature import SigningKey
from foundry.engine.workspace import Inputs, Workspace
from foundry.errors import ArtifactDamaged
from foundry.spec.job import JobSpec
from foundry.store.artifacts import LocalArtifacts
from tests import manifests
from workers.publish import store_variants

TARGETS = ("kiosk", "watch")
KEY = SigningKey(Ed25519PrivateKey.generate())
SPEC = manifests.spec(targets=tuple({"name": name, "max_params": 1_000_000} for name in TARGETS))


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "artifacts")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """As a run leaves it that did everything right."""
    inputs = Inputs(teacher="/teachers/tiny", data="/data.jsonl", data_sha256="0" * 64)
    workspace = Workspace.create(tmp_path / "work", SPEC, inputs)
    for target in TARGETS:
        manifests.write_variant(variant(workspace, target), target)
    name(workspace, [f"stages/export/{target}/variant" for target in TARGETS])
    return workspace


def variant(workspace: Workspace, target: str = "kiosk") -> Path:
    return workspace.root / "stages" / "export" / target / "variant"


def weights(workspace: Workspace) -> Path:
    return variant(workspace) / "safetensors" / "model.safetensors"


def name(workspace: Workspace, folders: object) -> None:
    (workspace.root / "result.json").write_text(json.dumps({"variants": folders}))


def test_good_result_is_stored_file_by_file(workspace: Workspace, artifacts: LocalArtifacts) -> None:
    variants = store_variants(workspace, SPEC, artifacts, KEY)
    assert [v.manifest.target for v in variants] == list(TARGETS)
    for new in variants:
        assert new.manifest == verify_folder(variant(workspace, new.manifest.target), KEY.public)[0]
        assert {f.path for f in new.files} == {"manifest.json", "README.md", "safetensors/model.safetensors"}
        for file in new.files:
            stored = artifacts.path(file.sha256).read_bytes()
            assert stored == (variant(workspace, new.manifest.target) / file.path).read_bytes()
            assert len(stored) == file.bytes


def test_absolute_folders_within_the_workspace_are_as_good(workspace: Workspace, artifacts: LocalArtifacts) -> None:
    name(workspace, [str(variant(workspace, target)) for target in TARGETS])
    assert len(store_variants(workspace, SPEC, artifacts, KEY)) == 2


def link_weights(workspace: Workspace) -> None:
    path = weights(workspace)
    path.rename(workspace.root / "elsewhere")
    path.symlink_to(workspace.root / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Workspace], object], str]] = {
    "no result": (lambda w: (w.root / "result.json").unlink(), "no result.json"),
    "half a result": (lambda w: (w.root / "result.json").write_text('{"variants": ['), "cannot be read"),
    "result without variants": (lambda w: (w.root / "result.json").write_text("{}"), "cannot be read"),
    "result that is a list": (lambda w: (w.root / "result.json").write_text("[]"), "cannot be read"),
    "no variants": (lambda w: name(w, []), "made variants for nothing"),
    "one target missing": (lambda w: name(w, ["stages/export/kiosk/variant"]), "for kiosk, not for kiosk, watch"),
    "one target twice": (lambda w: name(w, ["stages/export/kiosk/variant"] * 2), "for kiosk, kiosk"),
    "a folder that is not there": (lambda w: name(w, ["stages/export/phone/variant"]), "no folder of the workspace"),
    "an absolute folder outside": (lambda w: name(w, ["/etc"]), "no folder of the workspace"),
    "a folder above": (lambda w: name(w, ["../.."]), "no folder of the workspace"),
    "a number": (lambda w: name(w, [7]), "no folder of the workspace"),
    "changed bytes": (lambda w: weights(w).write_bytes(b"?" * 5000), "other bytes than the manifest says"),
    "cut off bytes": (lambda w: weights(w).write_bytes(b"kiosk"), "other bytes than the manifest says"),
    "a missing file": (lambda w: weights(w).unlink(), "is missing"),
    "a file too many": (lambda w: (variant(w) / "pickle.bin").write_bytes(b"?"), "pickle.bin is not in the manifest"),
    "a link": (link_weights, "is a link"),
    "no manifest": (lambda w: (variant(w) / "manifest.json").unlink(), "manifest.json"),
    "an empty manifest": (lambda w: (variant(w) / "manifest.json").write_text("{}"), "not a manifest"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_result_is_refused_with_what_is_wrong(
    workspace: Workspace, artifacts: LocalArtifacts, damage: str
) -> None:
    spoil, message = DAMAGE[damage]
    spoil(workspace)
    with pytest.raises(ArtifactDamaged, match=message):
        store_variants(workspace, SPEC, artifacts, KEY)


def test_folder_reached_through_a_link_out_of_the_workspace_is_refused(
    workspace: Workspace, artifacts: LocalArtifacts, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    variant(workspace).rename(outside)
    variant(workspace).symlink_to(outside)
    with pytest.raises(ArtifactDamaged, match="no folder of the workspace"):
        store_variants(workspace, SPEC, artifacts, KEY)


def test_result_for_another_spec_is_refused(workspace: Workspace, artifacts: LocalArtifacts) -> None:
    other: JobSpec = manifests.spec()
    with pytest.raises(ArtifactDamaged, match=r"not for kiosk$"):
        store_variants(workspace, other, artifacts, KEY)
