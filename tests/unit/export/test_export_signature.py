"""Whatever is done to a variant after it was signed is found offline."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from foundry.engine.export.manifest import NAME, verify_folder
from foundry.engine.export.signature import SigningKey, read_public_key
from foundry.errors import ArtifactDamaged, FoundryError, InvalidSettings, NotTrusted
from tests import manifests


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.read_or_make(tmp_path / "home" / "signing-key.pem")


@pytest.fixture
def folder(tmp_path: Path, key: SigningKey) -> Path:
    """A signed variant."""
    manifests.write_variant(tmp_path / "variant", "kiosk")
    key.sign(tmp_path / "variant" / NAME)
    return tmp_path / "variant"


def edited(folder: Path, edit: Callable[[dict[str, object]], object]) -> None:
    document = json.loads((folder / NAME).read_text())
    edit(document)
    (folder / NAME).write_text(json.dumps(document))


def test_a_signed_variant_names_its_key(folder: Path, key: SigningKey) -> None:
    manifest, signed_by = verify_folder(folder, key.public)
    assert signed_by == key.public and manifest.signature is not None and manifest.target == "kiosk"


def test_signing_again_gives_the_same_bytes_and_layout_does_not_matter(folder: Path, key: SigningKey) -> None:
    before = (folder / NAME).read_bytes()
    key.sign(folder / NAME)
    assert (folder / NAME).read_bytes() == before
    (folder / NAME).write_text(json.dumps(json.loads(before), indent=7, sort_keys=True))
    assert verify_folder(folder, key.public)[1] == key.public


def test_measurements_may_be_noted_later(folder: Path, key: SigningKey) -> None:
    (folder / "measured.jsonl").write_text("{}\n")
    assert verify_folder(folder, key.public)[1] == key.public


def better_metrics(folder: Path) -> None:
    edited(folder, lambda document: document.update(parameters=99))


def other_digest(folder: Path) -> None:
    (folder / "README.md").write_text("# other\n")
    import hashlib

    digest = hashlib.sha256(b"# other\n").hexdigest()
    edited(folder, lambda d: next(f for f in d["files"] if f["path"] == "README.md").update(sha256=digest, bytes=8))  # type: ignore[attr-defined]


def added_field(folder: Path) -> None:
    edited(folder, lambda document: document.update(note="trust me"))


def removed_field(folder: Path) -> None:
    edited(folder, lambda document: document.pop("training"))


def named_twice(folder: Path) -> None:
    text = (folder / NAME).read_text()
    (folder / NAME).write_text('{"parameters": 1,' + text.lstrip()[1:])


def cut_signature(folder: Path) -> None:
    edited(folder, lambda document: document["signature"].update(value="AAAA"))  # type: ignore[attr-defined, index]


def no_base64(folder: Path) -> None:
    edited(folder, lambda document: document["signature"].update(value="?"))  # type: ignore[attr-defined, index]


def claimed_by_another(folder: Path) -> None:
    other = SigningKey.read_or_make(folder.parent / "other.pem").public
    edited(folder, lambda document: document["signature"].update(key=other))  # type: ignore[attr-defined, index]


def no_signature(folder: Path) -> None:
    edited(folder, lambda document: document.pop("signature"))


def signed_by_another(folder: Path) -> None:
    SigningKey.read_or_make(folder.parent / "other.pem").sign(folder / NAME)


def changed_weights(folder: Path) -> None:
    path = folder / "safetensors" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def lost_file(folder: Path) -> None:
    (folder / "README.md").unlink()


def added_file(folder: Path) -> None:
    (folder / "safetensors" / "modeling.py").write_text("import os")


def linked_file(folder: Path) -> None:
    moved = folder.parent / "README.md"
    (folder / "README.md").rename(moved)
    (folder / "README.md").symlink_to(moved)


def no_manifest(folder: Path) -> None:
    (folder / NAME).unlink()


def no_json(folder: Path) -> None:
    (folder / NAME).write_bytes(b"\xff{")


DAMAGE: dict[str, tuple[Callable[[Path], None], type[FoundryError], str]] = {
    f.__name__: (f, kind, says)
    for f, kind, says in (
        (better_metrics, ArtifactDamaged, "not what was signed"),
        (other_digest, ArtifactDamaged, "not what was signed"),
        (added_field, ArtifactDamaged, "not what was signed"),
        (removed_field, ArtifactDamaged, "not what was signed"),
        (named_twice, ArtifactDamaged, "named twice"),
        (cut_signature, ArtifactDamaged, "not what was signed"),
        (no_base64, ArtifactDamaged, "signature cannot be read"),
        (claimed_by_another, NotTrusted, "not by"),
        (no_signature, NotTrusted, "carries no signature"),
        (signed_by_another, NotTrusted, "not by"),
        (changed_weights, ArtifactDamaged, r"model\.safetensors has other bytes"),
        (lost_file, ArtifactDamaged, r"README\.md is missing"),
        (added_file, ArtifactDamaged, r"modeling\.py is not in the manifest"),
        (linked_file, ArtifactDamaged, r"README\.md is a link"),
        (no_manifest, ArtifactDamaged, r"holds no manifest\.json"),
        (no_json, ArtifactDamaged, "is not a manifest"),
    )
}


@pytest.mark.parametrize(("damage", "kind", "says"), DAMAGE.values(), ids=DAMAGE)
def test_every_way_of_tampering_is_found(
    damage: Callable[[Path], None], kind: type[FoundryError], says: str, folder: Path, key: SigningKey
) -> None:
    damage(folder)
    with pytest.raises(kind, match=says):
        verify_folder(folder, key.public)


def test_without_a_trusted_key_an_edited_manifest_is_found_all_the_same(folder: Path) -> None:
    claimed_by_another(folder)
    with pytest.raises(ArtifactDamaged, match="not what was signed"):
        verify_folder(folder)
    no_signature(folder)
    assert verify_folder(folder, may_be_unsigned=True)[1] is None


def test_a_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "k" / "signing-key.pem"
    first = SigningKey.read_or_make(path)
    assert SigningKey.read_or_make(path).public == first.public
    assert path.stat().st_mode & 0o077 == 0
    assert read_public_key(str(path.with_suffix(".pub"))) == first.public == read_public_key(first.public)


def test_what_is_no_key_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("nonsense")
    with pytest.raises(InvalidSettings, match=r"x\.pem holds no key"):
        SigningKey.read_or_make(tmp_path / "x.pem")
    for word in ("rsa:abc", "ed25519:abc", "ed25519:AAAA", str(tmp_path / "x.pem")):
        with pytest.raises(InvalidSettings, match="neither a public key nor a file"):
            read_public_key(word)
