"""Small valid records, for tests that are about something else."""

import hashlib
from pathlib import Path
from typing import Any

from foundry.intake.documents import DatasetSummary, summarise
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.variant import Artifact
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.keys import Keys
from foundry.store.records import Claim, Idempotency, JobInputs, NewVariant
from foundry.store.settings import Settings
from tests.manifests import manifest, spec


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
