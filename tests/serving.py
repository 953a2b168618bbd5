"""A real service in a folder: SQLite, keys, artifacts, a teacher; a job taken through the store as a worker would."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from api.state import State, open_state
from foundry.intake.documents import summarise
from foundry.spec.estimate import estimate
from foundry.spec.evaluation import Evaluation, EvaluationSpec
from foundry.spec.family import families
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.resources import Dataset, Job, Variant
from foundry.spec.variant import Artifact, Lineage, Metrics, VariantManifest
from foundry.store.job_files import REPORTS
from foundry.store.records import EvaluationInputs, JobInputs, ModelPlace, NewVariant
from foundry.store.settings import Settings
from tests.checkpoints import LLAMA, write_checkpoint

DATA = b'{"text": "one"}\n{"text": "two"}\n'
TARGET = {"name": "kiosk", "max_params": 20_000}


@dataclass
class Serving:
    """What a test needs to act for one project, and to look behind the service."""

    folder: Path

    @cached_property
    def settings(self) -> Settings:
        return Settings(home=self.folder / "home", teacher_roots=(self.folder / "teachers",))

    @cached_property
    def memory(self) -> State:
        memory = open_state(self.settings)
        memory.database.upgrade()
        return memory

    @cached_property
    def project(self) -> str:
        return self.memory.keys.ensure_default_project()

    @cached_property
    def key(self) -> str:
        return self.memory.keys.create(self.project, "test")[1]

    @cached_property
    def teacher(self) -> Path:
        return write_checkpoint(self.folder / "teachers" / "tiny")

    @cached_property
    def dataset(self) -> Dataset:
        path = self.folder / "domain.jsonl"
        path.write_bytes(DATA)
        return self.memory.datasets.create(self.project, path.name, path, summarise(path))

    def spec(self, **changes: Any) -> dict[str, Any]:
        """A spec that is accepted."""
        return {"teacher": str(self.teacher), "data": self.dataset.id, "targets": [TARGET], **changes}

    def submit(self, **changes: Any) -> Job:
        spec = JobSpec.model_validate(self.spec(**changes))
        inputs = JobInputs(teacher=str(self.teacher), dataset_id=self.dataset.id, data_sha256=self.dataset.sha256)
        return self.memory.jobs.submit(self.project, spec, inputs)

    def say(self, job: Job, *messages: str) -> None:
        """Log lines of a run; the job is claimed when nobody has it."""
        claim = self.memory.jobs.claim("tester", job.id)
        assert claim is not None
        events = [RunEvent(type=EventType.LOG, message=message) for message in messages]
        self.memory.jobs.append(claim, events)
        self.memory.jobs.release(claim, "said enough")

    def publish(
        self, job: Job, files: dict[str, bytes], forms: Mapping[str, str] = MappingProxyType({}),
        metrics: tuple[Metrics, ...] = (),
    ) -> Variant:  # fmt: skip
        """Finish a queued job with one variant that has these files, of these formats, and a manifest."""
        claim = self.memory.jobs.claim("tester", job.id)
        assert claim is not None
        artifacts = tuple(self.keep(name, content, forms.get(name)) for name, content in files.items())
        manifest = _manifest(job, artifacts).model_copy(update={"metrics": metrics})
        shipped = self.keep("manifest.json", manifest.model_dump_json().encode())
        new = NewVariant(manifest=manifest, manifest_sha256=shipped.sha256, files=(*artifacts, shipped))
        self.memory.jobs.succeed(claim, [new])
        return self.memory.variants.list(self.project, job.id).data[0]

    def keep_report(self, job: Job, content: bytes = b"{}") -> None:
        """A report of a queued job, the same in every form."""
        claim = self.memory.jobs.claim("tester", job.id)
        assert claim is not None
        self.memory.jobs.keep_files(claim, "report", [self.keep(path, content) for path in REPORTS.values()])
        self.memory.jobs.release(claim, "reported enough")

    def evaluate(self, variant: Variant, **changes: Any) -> Evaluation:
        """A queued evaluation of a variant."""
        spec = EvaluationSpec.model_validate({"model": variant.id, "suite": "quick"} | changes)
        inputs = EvaluationInputs(model=ModelPlace(id=variant.id, name=variant.id, files=variant.files))
        return self.memory.evaluations.submit(self.project, spec, inputs)

    def keep(self, name: str, content: bytes, form: str | None = None) -> Artifact:
        """Put bytes into the artifact store."""
        path = self.folder / "kept"
        path.write_bytes(content)
        self.memory.artifacts.put(path)
        return Artifact(path=name, bytes=len(content), sha256=sha256(content).hexdigest(), format=form)


def _manifest(job: Job, files: tuple[Artifact, ...]) -> VariantManifest:
    family = families()["llama"]
    found = estimate(job.spec, family, family.shape_of(LLAMA)).targets[0]
    return VariantManifest(
        target=found.target, family=family.name, shape=found.shape, parameters=found.parameters, budget=found.budget,
        fits_budget=True, created_at=datetime.now(UTC), spec=job.spec, metrics=(), failed_formats={}, files=files,
        lineage=Lineage(
            teacher=job.spec.teacher, teacher_sha256="0" * 64, data=job.spec.data, data_sha256="0" * 64, versions={}
        ),
    )  # fmt: skip


def problem_of(raw: bytes, status: int) -> dict[str, Any]:
    """A problem document, checked for everything that every problem has."""
    problem: dict[str, Any] = json.loads(raw)
    assert problem["status"] == status, problem
    assert {"type", "title", "detail", "instance", "code", "request_id", "retryable", "errors"} <= set(problem)
    assert problem["type"] == f"urn:foundry:problem:{problem['code']}"
    return problem
