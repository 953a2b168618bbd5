"""A valid spec, manifest and variant folder. It imports little, so that a scripted run of a test starts quickly."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundry.engine.export.manifest import artifacts_in
from foundry.engine.workspace import write_json
from foundry.spec.job import JobSpec
from foundry.spec.target import Budget
from foundry.spec.variant import Artifact, Lineage, VariantManifest
from foundry.spec.weights import Shape

SHAPE = Shape(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, head_dim=16, vocab=256, tied=True)


def spec(**changes: Any) -> JobSpec:
    """A job for one target of its own description."""
    fields = {"teacher": "/teachers/tiny", "data": "ds_1", "targets": ({"name": "kiosk", "max_params": 1_000_000},)}
    return JobSpec.model_validate(fields | changes)


def manifest(target: str, files: tuple[Artifact, ...]) -> VariantManifest:
    """The manifest of a variant with these files."""
    return VariantManifest(
        target=target, family="llama", shape=SHAPE, parameters=100_000, fits_budget=True,
        budget=Budget(target=target, format="safetensors", context_tokens=128, max_params=1_000_000),
        created_at=datetime.now(UTC), spec=spec(), metrics=(), failed_formats={}, files=files,
        lineage=Lineage(
            teacher="/teachers/tiny", teacher_sha256="1" * 64, data="ds_1", data_sha256="0" * 64, versions={}
        ),
    )  # fmt: skip


def write_variant(folder: Path, target: str) -> None:
    """Fill a folder as an export does."""
    (folder / "safetensors").mkdir(parents=True)
    (folder / "safetensors" / "model.safetensors").write_bytes(target.encode() * 1000)
    (folder / "README.md").write_text(f"# {target}\n")
    write_json(folder / "manifest.json", manifest(target, artifacts_in(folder)).model_dump(mode="json"))
