"""Few statuses, many events. Progress is an event, never a status.

queued ──claim──▶ running ──finish──▶ succeeded | failed
  ▲                 │  │
  │   lease expired │  └─cancel─▶ cancelling ──▶ cancelled
  └────or released──┘
queued ──cancel──▶ cancelled
queued | running ──pause──▶ pausing ──▶ paused ──resume──▶ queued
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from foundry.spec.record import CreatedAt, Id, Record


class WorkKind(StrEnum):
    """What a worker can be asked to do; all kinds live the same life in the same table."""

    JOB = "job"
    EVALUATION = "evaluation"


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    """It waits for a worker."""
    RUNNING = "running"
    """A worker has claimed it."""
    PAUSING = "pausing"
    """Asked to wait; its worker writes a checkpoint."""
    PAUSED = "paused"
    """It waits until it is resumed."""
    CANCELLING = "cancelling"
    """Asked to stop; its worker has not let go yet."""
    SUCCEEDED = "succeeded"
    """It has ended, and what it was to make is there."""
    FAILED = "failed"
    """It has ended; `status_reason` says why."""
    CANCELLED = "cancelled"
    """It has ended because somebody asked for that."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow."""
        return not TRANSITIONS[self]


TRANSITIONS: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED, Status.CANCELLED}),
        Status.RUNNING: frozenset(
            {Status.QUEUED, Status.PAUSING, Status.CANCELLING, Status.SUCCEEDED, Status.FAILED, Status.PAUSED}
        ),
        Status.PAUSING: frozenset({Status.PAUSED, Status.CANCELLING, Status.SUCCEEDED, Status.FAILED}),
        Status.PAUSED: frozenset({Status.QUEUED, Status.CANCELLED}),
        Status.CANCELLING: frozenset({Status.CANCELLED}),
        Status.SUCCEEDED: frozenset(),
        Status.FAILED: frozenset(),
        Status.CANCELLED: frozenset(),
    }
)
"""Which status may follow which. `foundry.store.jobs` is the only place that moves a job, and it asks this table."""


class EventType(StrEnum):
    """What can happen to a job; the line under an event names the transition that it goes with, if any."""

    SUBMITTED = "job.submitted"
    """(nothing) -> queued."""
    STARTED = "job.started"
    """queued -> running; the number of the attempt is one more."""
    REQUEUED = "job.requeued"
    """running -> queued: the worker let go with a checkpoint."""
    ATTEMPT_LOST = "attempt.lost"
    """running -> queued: the lease ran out or the run was killed."""
    CANCEL_REQUESTED = "job.cancel_requested"
    """running | pausing -> cancelling."""
    CANCELLED = "job.cancelled"
    """queued | paused | cancelling -> cancelled."""
    PAUSE_REQUESTED = "job.pause_requested"
    """running -> pausing."""
    PAUSED = "job.paused"
    """queued | running | pausing -> paused."""
    RESUMED = "job.resumed"
    """paused -> queued."""
    SUCCEEDED = "job.succeeded"
    """running | pausing -> succeeded."""
    FAILED = "job.failed"
    """running | pausing -> failed."""
    STAGE_STARTED = "stage.started"
    """`data.stage` names it."""
    STAGE_COMPLETED = "stage.completed"
    """`data.stage` names it."""
    STAGE_SKIPPED = "stage.skipped"
    """With the reason, for example: the teacher already fits the target."""
    PROGRESS = "progress"
    """`data` says how far the stage is."""
    METRICS = "metrics"
    """`data` has what was measured."""
    CHECKPOINT = "checkpoint.created"
    """A run that is interrupted now goes on from here."""
    VARIANT_PUBLISHED = "variant.published"
    """A variant can be downloaded."""
    WARNING = "warning"
    """Something to look at."""
    LOG = "log"
    """Something said on the way."""


Level = Literal["debug", "info", "warning", "error"]
StageName = Literal["correct", "prune", "distill", "lora", "evaluate", "export"]
STAGES: tuple[StageName, ...] = ("correct", "prune", "distill", "lora", "evaluate", "export")


LAST_EVENTS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})
"""Nothing follows one of these."""


class Progress(Record):
    """How far the current stage is. `step` counts from 1 to `steps`."""

    stage: StageName
    """The stage at work."""
    step: int
    """The steps that are done."""
    steps: int
    """Of the stage, or of its `part`."""
    part: str | None = None
    """What of the stage has these steps, where it has several such runs: a target, or the calibration before it."""
    loss: float | None = None
    """The stage's objective at the last step, in nats per token, as a mean over the students; null outside of
    training."""
    held_out_loss: float | None = None
    """Cross entropy on held-out text at the last look, in nats per token; null before the first."""
    tokens_per_s: float | None = None
    """Training tokens, by the latest steps; null outside of training."""
    memory_bytes: int | None = None
    """The most that the run has held so far: on the accelerator, else in this process."""
    left_s: float | None = None
    """Seconds left in this stage."""


class RunEvent(Record):
    """One line of the run's standard output: what the engine tells its supervisor."""

    type: EventType
    message: str
    level: Level = "info"
    data: dict[str, Any] = Field(default_factory=dict)


class JobEvent(Record):
    """One appended, never edited line of a job's history. `seq` counts from 1 without a gap."""

    id: Id
    job_id: str
    """The job or the evaluation that it belongs to."""
    seq: int
    """Its number; `after` of a list and `Last-Event-ID` of a stream name it."""
    attempt: int
    """The attempt that was the last then; 0 before the first."""
    type: EventType
    """What happened."""
    level: Level
    """How much it matters to a reader of the log."""
    created_at: CreatedAt
    message: str
    """What happened, in words."""
    data: dict[str, Any]
    """The same for programs; its fields depend on `type`."""


class ExitCode:
    """What the run's exit status says to its supervisor. 64, 71, 74 and 75 are those of BSD's sysexits.h."""

    DONE = 0
    CRASHED = 1
    USER_ERROR = 64
    OUT_OF_MEMORY = 71
    STORAGE = 74
    STOPPED = 75
    """Asked to stop; a checkpoint is written and the run can be resumed."""
