"""Whether work can be done at all, found out before anything is written: headers are read, sizes are added up."""

import os
from functools import lru_cache
from pathlib import Path

from api.state import state
from api.teachers import check_tokenizer, open_checkpoint
from foundry.errors import InvalidData, NotFound, TeacherNotFound, UnknownFormat
from foundry.intake.checkpoint import Checkpoint, context_limit
from foundry.spec.estimate import Estimate, estimate
from foundry.spec.evaluation import PLAIN, EvaluationSpec
from foundry.spec.family import families
from foundry.spec.forecast import forecast
from foundry.spec.job import JobSpec, is_hub_id
from foundry.spec.resources import Dataset, Variant
from foundry.spec.target import budgets_of
from foundry.spec.weights import Shape
from foundry.store.records import EvaluationInputs, JobInputs, ModelPlace
from foundry.store.settings import Settings

_MANIFEST, _WEIGHTS = "manifest.json", ".safetensors"


def admit(spec: JobSpec, project_id: str) -> JobInputs:
    """The teacher and data that a spec means; raise a `UserError` that names the field when they cannot be used.

    `spec` has the project's own targets written out. A teacher on the hub is opened by the run: here only its targets'
    names are checked.
    """
    teacher, run, parameters = _named(spec.teacher, project_id), None, None
    if is_hub_id(teacher):
        require_hub(state().settings)
        budgets_of(spec)
    else:
        checkpoint = _opened(teacher, spec.teacher)
        check_tokenizer(checkpoint.folder)
        found = _estimate(spec, checkpoint)
        parameters, run = found.teacher_parameters, forecast(spec, found, None, None, None, "")
        teacher = str(checkpoint.folder)
    dataset = _dataset(spec.data, project_id)
    return JobInputs(
        teacher=teacher, dataset_id=dataset.id, data_sha256=dataset.sha256, teacher_parameters=parameters,
        model_id=spec.teacher if _is_model(spec.teacher) else None,
        memory_bytes=run and run.memory_bytes, disk_bytes=run and run.disk_bytes,
    )  # fmt: skip


def admit_evaluation(spec: EvaluationSpec, project_id: str) -> EvaluationInputs:
    """The models and data that an evaluation means; raise a `UserError` that names the field at fault."""
    model = _place(spec.model, "/model", project_id, spec.format)
    teacher = _place(spec.teacher, "/teacher", project_id) if spec.teacher is not None else None
    if spec.data is None:
        return EvaluationInputs(model=model, teacher=teacher)
    dataset = _dataset(spec.data, project_id)
    return EvaluationInputs(model=model, teacher=teacher, dataset_id=dataset.id, data_sha256=dataset.sha256)


def _place(named: str, pointer: str, project_id: str, form: str = PLAIN) -> ModelPlace:
    try:
        if named.startswith("var_"):
            return _variant_place(state().variants.get(project_id, named), form)
        if _is_model(named):
            return _model_place(named, state().models.get(project_id, named).name, project_id, form)
    except NotFound as error:
        raise TeacherNotFound(f"{error.message}; give the id of a variant or a model", pointer=pointer) from error
    raise TeacherNotFound(
        f"{named!r:.200} is neither a variant (var_...) nor a registered model (mdl_...); register it with: "
        "POST /v1/models",
        pointer=pointer,
    )


def _model_place(model_id: str, name: str, project_id: str, form: str) -> ModelPlace:
    if form != PLAIN:
        raise UnknownFormat(f"a model has no {form}; leave the format out, or name a variant", pointer="/format")
    source = _named(model_id, project_id)
    if is_hub_id(source):
        require_hub(state().settings)
    else:
        checkpoint = _opened(source, model_id)
        check_tokenizer(checkpoint.folder)
        source = str(checkpoint.folder)
    return ModelPlace(id=model_id, name=name, source=source)


def _variant_place(variant: Variant, form: str) -> ModelPlace:
    """All that opens this format: a GGUF is asked with the tokenizer that lies beside the safetensors."""
    shipped = sorted({file.format for file in variant.files if file.format})
    for needed in (form, PLAIN):
        if needed not in shipped:
            raise UnknownFormat(f"{variant.id} has no {needed}; it has {', '.join(shipped)}", pointer="/format")
    files = tuple(
        file for file in variant.files
        if file.format == form or file.path == _MANIFEST
        or (file.format == PLAIN and not file.path.endswith(_WEIGHTS))
    )  # fmt: skip
    name = f"{variant.id} ({variant.target})"
    return ModelPlace(id=variant.id, name=name if form == PLAIN else f"{name}, {form}", files=files)


def _dataset(data: str, project_id: str) -> Dataset:
    try:
        return state().datasets.get(project_id, data)
    except NotFound as error:
        raise InvalidData(f"{error.message}; upload the file first: POST /v1/datasets?name=...") from error


def estimate_of(spec: JobSpec, project_id: str) -> Estimate:
    """What the spec's teacher would become on each target; raise a `UserError` that names the field when it cannot."""
    teacher = _named(spec.teacher, project_id)
    if is_hub_id(teacher):
        raise TeacherNotFound(
            f"{spec.teacher} is on the model hub, which this service does not read for an estimate. Give a folder, or "
            "download its config.json and run: foundry plan",
            pointer="/teacher",
        )
    return _estimate(spec, _opened(teacher, spec.teacher))


def _is_model(teacher: str) -> bool:
    return teacher.startswith("mdl_")


def _named(teacher: str, project_id: str) -> str:
    """The folder or the hub's id behind a registered model; anything else is itself."""
    if not _is_model(teacher):
        return teacher
    try:
        return state().models.teacher(project_id, teacher)
    except NotFound as error:
        raise TeacherNotFound(f"{error.message}; register it with: POST /v1/models", pointer="/teacher") from error


def _opened(folder: str, named: str) -> Checkpoint:
    """An uploaded model lies where the service itself laid it out; every other folder must be below a root."""
    uploads = state().settings.artifacts / "models" / named
    if _is_model(named) and folder == str(uploads):
        return open_checkpoint(uploads)
    return open_teacher(folder, state().settings)


def _estimate(spec: JobSpec, checkpoint: Checkpoint) -> Estimate:
    limit = context_limit(checkpoint.config)
    same = spec.model_copy(update={"teacher": "", "data": "", "name": "", "seed": 0, "priority": 0})
    return _estimate_of_shape(same, checkpoint.family.name, checkpoint.shape, checkpoint.present, limit)


@lru_cache(maxsize=256)
def _estimate_of_shape(
    spec: JobSpec, family: str, shape: Shape, present: frozenset[str], limit: int | None
) -> Estimate:
    """The search for shapes depends on these alone and is most of what a submit costs; sweeps repeat it."""
    return estimate(spec, families()[family], shape, present, limit)


def require_hub(settings: Settings) -> None:
    """Raise `TeacherNotFound` when the operator takes no models from the hub."""
    if not settings.hub_allowed:
        raise TeacherNotFound(
            f"this service takes no teachers from the model hub; give a folder {_below_roots(settings)}",
            pointer="/teacher",
        )


def open_teacher(teacher: str, settings: Settings) -> Checkpoint:
    """A folder below one of the roots that the operator allows; a relative path is looked for in each of them.

    The place is judged with every link resolved and before anything is read, so that no path can be probed.
    """
    for root in settings.teacher_roots:
        folder = _resolved(root, teacher)
        if folder is not None and os.path.isdir(folder):
            return open_checkpoint(folder)
    raise TeacherNotFound(
        f"there is no folder {teacher!r:.200} {_below_roots(settings)}; give one that holds config.json and "
        "model.safetensors, or ORG/NAME on the model hub",
        pointer="/teacher",
    )


def _resolved(root: Path, teacher: str) -> Path | None:
    """The folder without any link; None when it is not below the root, or cannot be a path."""
    try:
        folder = (root / teacher).resolve()
    except (OSError, ValueError, RuntimeError):
        return None
    return folder if folder.is_relative_to(root) else None


def _below_roots(settings: Settings) -> str:
    if not settings.teacher_roots:
        return "that this service may read (its operator allows none: FOUNDRY_TEACHER_ROOTS)"
    return f"below {' or '.join(map(str, settings.teacher_roots))}"
