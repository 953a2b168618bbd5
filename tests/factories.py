"""Small valid records, for tests that are about something else."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundry.intake.documents import DatasetSummary, summarise
from foundry.spec.family import Shape
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.target import Budget
from foundry.spec.variant import Artifact, Lineage, VariantManifest
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.keys import Keys
from foundry.store.records import Claim, Idempotency, JobInputs, NewVariant
from foundry.store.settings import Settings

SHAPE = Shape(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, head_dim=16, vocab=256, tied=True)


def spec(**changes: Any) -> JobSpec:
    """A job for one target of its own description."""
    fields = {"teacher": "/teachers/tiny", "data": "ds_1", "targets": ({"name": "kiosk", "max_params": 1_000_000},)}
    return JobSpec.model_validate(fields | changes)


def inputs(**changes: Any) -> JobInputs:
    """What the API resolved for that job."""
    return JobInputs.model_validate(
        {"teacher": "/teachers/tiny", "dataset_id": "ds_1", "data_sha256": "0" * 64} | changes
    )


def settings(home: Path, **changes: Any) -> Settings:
    """Settings of an installation in a test's own folder."""
    return Settings(home=home, **changes)


def project(database: Database, name: str = "default") -> str:
    """The id of a project."""
    return Keys(database, b"secret").create_project(name)


def running(jobs: Jobs, project_id: str, **changes: Any) -> Claim:
    """A new job that a worker has claimed."""
    claim = jobs.claim("worker-1", jobs.submit(project_id, spec(**changes), inputs()).id)
    assert claim is not None
    return claim


def request(key: str = "key-1", body: bytes = b"{}", route: str = "POST /v1/customization/jobs") -> Idempotency:
    """A request with an idempotency key."""
    return Idempotency(key=key, route=route, body_sha256=hashlib.sha256(body).hexdigest())


def said(type: EventType, message: str = "", **data: Any) -> RunEvent:
    """One thing that a run says."""
    return RunEvent(type=type, message=message, data=data)


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


def new_variant(target: str = "kiosk") -> NewVariant:
    """A variant to publish; its files are rows only."""
    weights = Artifact(path="safetensors/model.safetensors", bytes=1000, sha256="a" * 64, format="safetensors")
    itself = Artifact(path="manifest.json", bytes=500, sha256="b" * 64)
    return NewVariant(manifest=manifest(target, (weights,)), manifest_sha256=itself.sha256, files=(itself, weights))


def data_file(folder: Path, text: str = '{"text": "a document"}\n') -> tuple[Path, DatasetSummary]:
    """A file as the API staged it, and what it holds."""
    path = folder / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    return path, summarise(path)
