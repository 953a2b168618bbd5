"""A variant of the demo's teacher, written and signed as an export does, without its stage."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from foundry.engine.export.gguf import write_gguf
from foundry.engine.export.manifest import NAME, artifacts_in
from foundry.engine.export.signature import SigningKey
from foundry.engine.export.vocabulary import vocabulary_of
from foundry.engine.models import load_tokenizer
from foundry.engine.workspace import write_json
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.job import JobSpec
from foundry.spec.target import Budget
from foundry.spec.variant import Lineage, VariantManifest
from tests.tiny import DEMO_TEACHER

CONTEXT_TOKENS = 256


@pytest.fixture(scope="session")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One GGUF of a model that has learned to continue Python."""
    folder = tmp_path_factory.mktemp("served") / "variant"
    folder.mkdir()
    checkpoint, tokenizer = open_checkpoint(DEMO_TEACHER), load_tokenizer(DEMO_TEACHER)
    vocabulary = vocabulary_of(tokenizer, checkpoint.shape.vocab)
    write_gguf(checkpoint, vocabulary, folder / "kiosk-q8_0.gguf", quantisation="q8_0", name="demo")
    return signed(folder, "gguf:q8_0")


@pytest.fixture(scope="session")
def plain_variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as safetensors alone."""
    folder = tmp_path_factory.mktemp("plain") / "variant"
    shutil.copytree(DEMO_TEACHER, folder / "safetensors", ignore=shutil.ignore_patterns("*.md", "*.jsonl"))
    return signed(folder, "safetensors")


def signed(folder: Path, form: str) -> Path:
    """Write and sign the manifest of what lies in a folder."""
    shape = open_checkpoint(DEMO_TEACHER).shape
    budget = Budget(target="kiosk", format=form, context_tokens=CONTEXT_TOKENS, max_bytes=100_000_000)
    manifest = VariantManifest(
        target="kiosk", family="llama", shape=shape, parameters=7_344_384, budget=budget, fits_budget=True,
        created_at=datetime.now(UTC), metrics=(), failed_formats={}, files=artifacts_in(folder),
        spec=JobSpec(teacher=str(DEMO_TEACHER), data="./d", targets=({"name": "kiosk", "max_bytes": 100_000_000},)),
        lineage=Lineage(teacher="teacher", teacher_sha256="0" * 64, data="./d", data_sha256="0" * 64, versions={}),
    )  # fmt: skip
    write_json(folder / NAME, manifest.model_dump(mode="json"))
    SigningKey.read_or_make(folder.parent / "signing-key.pem").sign(folder / NAME)
    return folder
