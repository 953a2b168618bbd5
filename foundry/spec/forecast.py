"""What a run will need: memory, disk, time and cost. Lower bounds by arithmetic; time from what earlier jobs took."""

from foundry.spec.estimate import Estimate, TargetEstimate
from foundry.spec.job import JobSpec
from foundry.spec.resources import Resource

BYTES_OF_TEACHER = 2
"""A teacher's parameter in memory, bfloat16."""
BYTES_OF_STUDENT = 16
"""A student's parameter in training: float32 weight, gradient, and AdamW's two moments."""
BYTES_OF_CHECKPOINT = 12
"""Of a student's parameter on disk: weight and moments in float32."""
CHECKPOINTS_KEPT = 2
_FORWARD, _TRAINING = 2, 6
"""Floating-point operations for a parameter and token: a pass forward; forward, backward and the gradient (2001.08361,
table 1, without attention)."""


class Measured(Resource):
    """What earlier jobs of this installation took."""

    jobs: int
    """How many were counted: of the latest 20 that succeeded, those whose training is known."""
    operations_per_s: float
    """Median over those jobs: operations that training needs by arithmetic, over the seconds of the attempts."""


class RunForecast(Resource):
    """What the run will take. Bytes are lower bounds: activations, caches and libraries come on top."""

    memory_bytes: int
    """The teacher's weights in bfloat16, and every student with gradient and optimizer in float32."""
    disk_bytes: int
    """Checkpoints and every format of every target, in the work folder and once more in the artifact store."""
    disk_free_bytes: int | None = None
    """The least that is free where the service keeps work and artifacts; None when they lie elsewhere."""
    disk_suffices: bool | None = None
    """Whether what is free is as much as `disk_bytes`; null where that is not known."""
    training_operations: float
    """Floating-point operations of all training stages, by arithmetic."""
    duration_s: float | None = None
    """From `measured`; None while no job has succeeded here."""
    cost: float | None = None
    """Duration at the operator's price for an hour; None without either."""
    currency: str | None = None
    """Of `cost`, as the operator set it; null without a cost."""
    measured: Measured | None = None
    """What `duration_s` is taken from; null while no job has succeeded here."""


class JobEstimate(Estimate):
    """What a job would give, and what it would take."""

    run: RunForecast
    """Memory, disk, time and cost."""


def training_operations(spec: JobSpec, teacher_parameters: int, student_parameters: int) -> float:
    """Operations of the training stages. `student_parameters` are those of all students together."""
    total = 0.0
    if spec.correct is not None:
        total += _TRAINING * teacher_parameters * spec.correct.tokens
    if spec.distill is not None:
        total += (_FORWARD * teacher_parameters + _TRAINING * student_parameters) * spec.distill.tokens
    if spec.lora is not None:
        total += _TRAINING * student_parameters * spec.lora.tokens
    return total


def forecast(
    spec: JobSpec, found: Estimate, measured: Measured | None, disk_free_bytes: int | None,
    cost_per_hour: float | None, currency: str,
) -> RunForecast:  # fmt: skip
    """What a run of this spec will take, from what it would give."""
    students = sum(target.parameters for target in found.targets)
    operations = training_operations(spec, found.teacher_parameters, students)
    disk = CHECKPOINTS_KEPT * BYTES_OF_CHECKPOINT * students + 2 * sum(map(_shipped_bytes, found.targets))
    duration_s = operations / measured.operations_per_s if measured else None
    cost = cost_per_hour * duration_s / 3600 if cost_per_hour is not None and duration_s is not None else None
    return RunForecast(
        memory_bytes=BYTES_OF_TEACHER * found.teacher_parameters + BYTES_OF_STUDENT * students, disk_bytes=disk,
        disk_free_bytes=disk_free_bytes, disk_suffices=None if disk_free_bytes is None else disk <= disk_free_bytes,
        training_operations=operations, duration_s=duration_s, cost=cost,
        currency=currency if cost is not None else None, measured=measured,
    )  # fmt: skip


def _shipped_bytes(target: TargetEstimate) -> int:
    return sum(form.bytes for form in target.formats)
