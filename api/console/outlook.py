"""What a form would give, target by target: one that cannot be met does not hide the others."""

from typing import NamedTuple

from api.admission import estimate_of
from api.auth import project_id
from api.console.sketch import Bar, bars, in_words
from api.state import state
from foundry.errors import BudgetUnreachable, UnknownTarget
from foundry.spec.estimate import Estimate, FormatEstimate, TargetEstimate
from foundry.spec.forecast import RunForecast, forecast
from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.record import parse
from foundry.spec.stages import Lora
from foundry.spec.weights import Shape


class FormatOutlook(NamedTuple):
    """One format on one target."""

    format: str
    bytes: int
    is_device: bool
    """Whether the device runs this one."""
    fits: bool | None
    """Whether file, its adapter and cache are within the budget; None where the budget counts parameters."""


class TargetOutlook(NamedTuple):
    """What one target would get, or why it would get nothing."""

    name: str
    found: TargetEstimate | None
    problem: str | None
    smallest_bytes: int | None
    formats: tuple[FormatOutlook, ...] = ()
    drawing: tuple[Bar, ...] = ()
    in_words: str = ""


class Outlook(NamedTuple):
    """All targets, and the run."""

    family: str
    teacher_shape: Shape
    teacher_parameters: int
    teacher_drawing: tuple[Bar, ...]
    targets: tuple[TargetOutlook, ...]
    run: RunForecast | None
    """None when no target can be met."""


def outlook(document: dict[str, object]) -> Outlook:
    """Raises a `UserError` for what concerns the whole job: the teacher, or a field that cannot be."""
    spec = parse(JobSpec, {"data": "-"} | document)  # no estimate reads the data
    memory, project = state(), project_id()
    found: list[Estimate] = []
    targets: list[TargetOutlook] = []
    for target in spec.targets:
        name = target.name if isinstance(target, CustomTarget) else target
        try:
            alone = memory.targets.resolve(project, spec.model_copy(update={"targets": (target,)}))
            one = estimate_of(_what_decides(alone), project)
        except (BudgetUnreachable, UnknownTarget) as error:
            targets.append(TargetOutlook(name, None, error.message, getattr(error, "smallest_bytes", None)))
            continue
        found.append(one)
        targets.append(_met(one.targets[0], one.teacher_shape))
    if not found:
        return _without_any(spec, project, targets)
    whole = found[0].model_copy(update={"targets": tuple(one.targets[0] for one in found)})
    return Outlook(
        family=whole.family, teacher_shape=whole.teacher_shape, teacher_parameters=whole.teacher_parameters,
        teacher_drawing=tuple(bars(whole.teacher_shape, whole.teacher_shape)), targets=tuple(targets),
        run=_run(spec, whole),
    )  # fmt: skip


def _what_decides(spec: JobSpec) -> JobSpec:
    """The spec without what changes no shape, so that typing a number of tokens repeats no search."""
    plain = JobSpec(teacher=spec.teacher, data="-", targets=spec.targets, formats=spec.formats)
    lora = Lora(rank=spec.attached_rank, ship="attached") if spec.attached_rank else None
    return plain.model_copy(update={"prune": spec.prune.model_copy(update={"calibration_tokens": 1}), "lora": lora})


def _met(target: TargetEstimate, teacher: Shape) -> TargetOutlook:
    return TargetOutlook(
        target.target, target, None, None, tuple(_format(form, target) for form in target.formats),
        tuple(bars(target.shape, teacher)), in_words(target.shape, teacher),
    )  # fmt: skip


def _format(form: FormatEstimate, target: TargetEstimate) -> FormatOutlook:
    limit = target.budget.max_bytes
    fits = None if limit is None else form.bytes + form.adapter_bytes + target.kv_cache_bytes <= limit
    return FormatOutlook(form.format, form.bytes, form.format == target.budget.format, fits)


def _without_any(spec: JobSpec, project: str, targets: list[TargetOutlook]) -> Outlook:
    """No target can be met: the teacher is still there to look at."""
    room = CustomTarget(name="room", max_params=2**62)
    teacher = estimate_of(_what_decides(spec.model_copy(update={"targets": (room,)})), project)
    return Outlook(
        family=teacher.family, teacher_shape=teacher.teacher_shape, teacher_parameters=teacher.teacher_parameters,
        teacher_drawing=tuple(bars(teacher.teacher_shape, teacher.teacher_shape)), targets=tuple(targets), run=None,
    )  # fmt: skip


def _run(spec: JobSpec, found: Estimate) -> RunForecast:
    settings, forecasts = state().settings, state().forecasts
    return forecast(
        spec, found, forecasts.measured(), forecasts.disk_free_bytes(), settings.cost_per_hour, settings.currency
    )
