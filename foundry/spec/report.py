"""What a job's report says: everything that its page shows, as one record for programs."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import StageName
from foundry.spec.record import Record
from foundry.spec.suite import SuiteResult
from foundry.spec.target import Budget
from foundry.spec.variant import Artifact, Candidate, Metrics
from foundry.spec.weights import Shape


class StageRun(Record):
    """One stage as it went, all attempts together."""

    stage: StageName
    status: Literal["completed", "failed", "unfinished"]
    seconds: float
    """Wall clock while the stage was at work."""
    result: dict[str, Any]
    """What the stage wrote into its done.json."""


class Curve(Record):
    """What a training stage measured on its way. Losses in nats per token."""

    stage: StageName
    steps: int
    tokens: int
    rows: tuple[dict[str, float], ...]
    """`step` and `tokens`, with `loss` (of the stage's objective) or `held_out_loss` (cross entropy)."""


class Sample(Record):
    """One held-out prompt, what the document says next, and what each model says."""

    key: str
    prompt: str
    reference: str
    answers: dict[str, str]


class Kept(Record):
    """What a plan left of each axis."""

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    """For each kept layer its kept heads."""
    ffn_ratio: float
    """Of the channels of a kept layer."""
    hidden_ratio: float


class TargetReport(Record):
    """One target: what was allowed, what was chosen, how it was trained, what came out."""

    target: str
    budget: Budget | None = None
    fits_budget: bool | None = None
    teacher_shape: Shape | None = None
    shape: Shape | None = None
    parameters: int | None = None
    repair: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    """Best first; the first was taken."""
    kept: Kept | None = None
    curves: tuple[Curve, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    failed_formats: dict[str, str] = Field(default_factory=dict)
    files: tuple[Artifact, ...] = ()
    samples: tuple[Sample, ...] = ()


class Importance(Record):
    """How much each index of each axis of the teacher carries."""

    tokens: int
    scores: dict[str, Any]
    """`layers`: one score a layer. `heads`: those of each layer, by number. `ffn`, `hidden`: those of each layer in
    falling order, as means of up to 48 stretches."""


class Leaked(Record):
    """A held-out document that training text gives away."""

    key: str
    share: float


class Remark(Record):
    """A warning of the run, or why it failed."""

    at: datetime
    level: str
    stage: str
    message: str


class Cost(Record):
    """What a job took."""

    seconds: float
    """Wall clock of all stages of all attempts."""
    attempts: int
    hardware: str | None
    accelerated: bool
    """Whether those are seconds of an accelerator."""
    trained_tokens: int
    """Tokens that training stages read, each once however many students learned from them."""
    scored_tokens: int
    energy_joules: float | None = None
    """Of the processor's package, where the kernel lets it be read; other programs on it count too."""


class JobReport(Record):
    """One job from what was asked to what came out."""

    format_version: int = 1
    made_at: datetime
    status: Literal["succeeded", "failed", "cancelled", "unfinished"]
    reason: str | None = None
    """Why it failed, or that it was cancelled."""
    spec: JobSpec
    data_sha256: str
    teacher_sha256: str | None = None
    versions: dict[str, str]
    dtype: str | None = None
    stages: tuple[StageRun, ...]
    targets: tuple[TargetReport, ...]
    importance: Importance | None = None
    benchmarks: tuple[SuiteResult, ...] = ()
    """The teacher first, then one result a target."""
    held_out_documents: int | None = None
    leaks: tuple[Leaked, ...] = ()
    remarks: tuple[Remark, ...] = ()
    cost: Cost
