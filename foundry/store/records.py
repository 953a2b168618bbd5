"""What the store's callers hand in and what a worker holds. What it gives back: spec/resources.py."""

from dataclasses import dataclass

from foundry.spec.evaluation import EvaluationSpec
from foundry.spec.job import JobSpec, is_hub_id
from foundry.spec.record import Record
from foundry.spec.variant import Artifact, VariantManifest


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """The request that a key stands for: the same key with another route or body is a conflict."""

    key: str
    route: str
    """For example POST /v1/customization/jobs."""
    body_sha256: str


class JobInputs(Record):
    """The spec's teacher and data, resolved when the job was submitted."""

    teacher: str
    """An absolute folder, or the hub id of the spec."""
    dataset_id: str
    data_sha256: str
    model_id: str | None = None
    """The registered model that the spec named."""
    teacher_parameters: int | None = None
    """None for a model on the hub; for estimates from what other jobs took."""
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    """What a run needs at least, by the estimate; None for a model on the hub."""


class ModelPlace(Record):
    """A model as a worker finds it: a folder or a hub id, or else files of the artifact store."""

    id: str
    """As the request named it; an active evaluation keeps it from being deleted."""
    name: str
    source: str = ""
    files: tuple[Artifact, ...] = ()

    @property
    def needs_hub(self) -> bool:
        """Whether it is to be fetched."""
        return not self.files and is_hub_id(self.source)


class EvaluationInputs(Record):
    """An evaluation's models and data, resolved when it was submitted."""

    model: ModelPlace
    teacher: ModelPlace | None = None
    dataset_id: str | None = None
    data_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's right to one job. `epoch` fences it: after another claim nothing can be written with this one."""

    job_id: str
    project_id: str
    epoch: int
    spec: JobSpec | EvaluationSpec
    inputs: JobInputs | EvaluationInputs
    worker: str
    halvings: int = 0
    """How often the micro-batch is halved, because attempts before ran out of memory."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What the user asked of a running job, as its worker learns with a heartbeat."""

    cancel: bool
    pause: bool


@dataclass(frozen=True, kw_only=True)
class NewVariant:
    """A verified variant whose files are all in the artifact store."""

    manifest: VariantManifest
    manifest_sha256: str
    files: tuple[Artifact, ...]
    """Every file, manifest.json included."""
