"""`foundry verify` as it is called; every kind of tampering stands in tests/unit/export/test_export_signature.py."""

from pathlib import Path

import pytest

from foundry.engine.export.manifest import NAME
from foundry.engine.export.signature import SigningKey
from tests import manifests
from tests.unit.cli.conftest import Command


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    """The key of this installation."""
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "home"))
    return SigningKey.read_or_make(tmp_path / "home" / "signing-key.pem")


@pytest.fixture
def folder(tmp_path: Path, key: SigningKey) -> Path:
    """A signed variant."""
    manifests.write_variant(tmp_path / "variant", "kiosk")
    key.sign(tmp_path / "variant" / NAME)
    return tmp_path / "variant"


def test_verify_says_who_signed_and_what_that_is_worth(
    foundry: Command, folder: Path, key: SigningKey, tmp_path: Path
) -> None:
    done = foundry("verify", folder)
    assert done.code == 0 and "is as it was made: 2 files" in done.out and "the key of this installation" in done.out
    done = foundry("verify", folder, "--key", tmp_path / "home" / "signing-key.pub")
    assert done.code == 0 and f"signed by {key.public}, the key asked for" in done.out
    (tmp_path / "home" / "signing-key.pub").unlink()
    assert "compare with its signing-key.pub, or pass it with --key" in foundry("verify", folder).out


def test_verify_ends_with_one_and_the_reason_when_something_is_wrong(
    foundry: Command, folder: Path, tmp_path: Path
) -> None:
    other = SigningKey.read_or_make(tmp_path / "other.pem").public
    done = foundry("verify", folder, "--key", other)
    assert done.code == 1 and f"not by {other}" in done.err
    assert foundry("verify", folder, "--key", "nonsense").code == 1
    (folder / "README.md").write_text("# other")
    done = foundry("verify", folder)
    assert done.code == 1 and "README.md has other bytes" in done.err


def test_verify_takes_an_unsigned_variant_only_when_told(foundry: Command, folder: Path) -> None:
    manifests.write_variant(folder.parent / "unsigned", "watch")
    assert "carries no signature" in foundry("verify", folder.parent / "unsigned").err
    done = foundry("verify", folder.parent / "unsigned", "--digests-only")
    assert done.code == 0 and "anyone could have written both" in done.out


def test_serve_refuses_what_a_runtime_cannot_open_and_says_what_to_do(foundry: Command, folder: Path) -> None:
    done = foundry("serve", folder, "--runtime", "llamacpp")
    assert done.code == 1 and "nothing to serve by llamacpp; it holds safetensors" in done.err
    assert "ask the job for one" in done.err
    done = foundry("serve", folder, "--format", "gguf:f16")
    assert done.code == 1 and "as gguf:f16" in done.err and "give --format safetensors" in done.err
    refused = " ".join(foundry("serve", folder, "--runtime", "vllm").err.split())
    assert "--runtime vllm is none of llamacpp, transformers; other servers, such as vLLM, are started on" in refused
