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
    """Its name."""
    status: Literal["completed", "failed", "unfinished"]
    """unfinished: it was stopped, or the run has not come to its end."""
    seconds: float
    """Wall clock while the stage was at work."""
    result: dict[str, Any]
    """What the stage wrote into its done.json."""


class Curve(Record):
    """What a training stage measured on its way. Losses in nats per token."""

    stage: StageName
    """correct, distill or lora."""
    steps: int
    """That were done."""
    tokens: int
    """That were trained on."""
    rows: tuple[dict[str, float], ...]
    """`step` and `tokens`, with `loss` (of the stage's objective) or `held_out_loss` (cross entropy)."""


class Sample(Record):
    """One held-out prompt, what the document says next, and what each model says."""

    key: str
    """The id of the document, or the digest of its content."""
    prompt: str
    """Its beginning, as text."""
    reference: str
    """How the document goes on."""
    answers: dict[str, str]
    """Name of each model to what it says."""


class Kept(Record):
    """What a plan left of each axis."""

    layers: tuple[int, ...]
    """Their numbers in the teacher, counted from 0."""
    heads: tuple[tuple[int, ...], ...]
    """For each kept layer its kept heads."""
    ffn_ratio: float
    """Of the channels of a kept layer."""
    hidden_ratio: float
    """Of the residual stream's width."""


class TargetReport(Record):
    """One target: what was allowed, what was chosen, how it was trained, what came out."""

    target: str
    """Its name."""
    budget: Budget | None = None
    """What the target allowed; null where no variant was exported."""
    fits_budget: bool | None = None
    """Null where no variant was exported."""
    teacher_shape: Shape | None = None
    """Null where nothing was planned."""
    shape: Shape | None = None
    """That was taken; null where nothing was planned."""
    parameters: int | None = None
    """Of the variant; null where none was exported."""
    repair: tuple[str, ...] = ()
    """Those that were applied."""
    candidates: tuple[Candidate, ...] = ()
    """Best first; the first was taken."""
    kept: Kept | None = None
    """Null where nothing was planned."""
    curves: tuple[Curve, ...] = ()
    """One for each training stage that has run."""
    metrics: tuple[Metrics, ...] = ()
    """Of teacher, students and files, as far as each was measured."""
    failed_formats: dict[str, str] = Field(default_factory=dict)
    """Formats that were asked for and did not pass their check, with the reason."""
    files: tuple[Artifact, ...] = ()
    """Of the variant; empty where none was exported."""
    samples: tuple[Sample, ...] = ()
    """What each model says to some held-out prompts."""


class Importance(Record):
    """How much each index of each axis of the teacher carries."""

    tokens: int
    """Of the text that the scores were taken on."""
    scores: dict[str, Any]
    """`layers`: one score a layer. `heads`: those of each layer, by number. `ffn`, `hidden`: those of each layer in
    falling order, as means of up to 48 stretches."""


class Leaked(Record):
    """A held-out document that training text gives away."""

    key: str
    """The id of the document, or the digest of its content."""
    share: float
    """Of its runs of eight words that stand in the training text, 0 to 1; 1 also for the same text."""


class Remark(Record):
    """A warning of the run, or why it failed."""

    at: datetime
    """When it was said, UTC."""
    level: str
    """warning or error."""
    stage: str
    """Empty where no stage said it."""
    message: str
    """In words."""


class Cost(Record):
    """What a job took."""

    seconds: float
    """Wall clock of all stages of all attempts."""
    attempts: int
    """How often a run was started."""
    hardware: str | None
    """Of the latest attempt; null where none has begun."""
    accelerated: bool
    """Whether those are seconds of an accelerator."""
    trained_tokens: int
    """Tokens that training stages read, each once however many students learned from them."""
    scored_tokens: int
    """Held-out tokens, counted for every model that scored them."""
    energy_joules: float | None = None
    """Of the processor's package, where the kernel lets it be read; other programs on it count too."""


class JobReport(Record):
    """One job from what was asked to what came out."""

    format_version: int = 1
    """Of this document; 1 so far."""
    made_at: datetime
    """UTC."""
    status: Literal["succeeded", "failed", "cancelled", "unfinished"]
    """How the job stood when the report was made."""
    reason: str | None = None
    """Why it failed, or that it was cancelled."""
    spec: JobSpec
    """The request as the run read it, with every default."""
    data_sha256: str
    """Of the data's bytes."""
    teacher_sha256: str | None = None
    """Digest over name, size and digest of every weight file of the teacher; null where no variant was exported."""
    versions: dict[str, str]
    """Library name to version, where the report was made."""
    dtype: str | None = None
    """Of the computation in the latest attempt; null where none has begun."""
    stages: tuple[StageRun, ...]
    """Those that were begun, in order."""
    targets: tuple[TargetReport, ...]
    """In the order of the spec."""
    importance: Importance | None = None
    """Null until the evaluate stage has written it."""
    benchmarks: tuple[SuiteResult, ...] = ()
    """The teacher first, then one result a target."""
    held_out_documents: int | None = None
    """Before those that leaked were taken out; null until the evaluate stage is done."""
    leaks: tuple[Leaked, ...] = ()
    """Held-out documents that also stand in the training text; they are not measured on, unless no other is left."""
    remarks: tuple[Remark, ...] = ()
    """Each once, in order."""
    cost: Cost
    """All attempts together."""
