"""What a variant's folder holds beside the model: plan, spec, terms, card, and the manifest over all of it."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from foundry.engine.export.card import licence_of, write_card
from foundry.engine.export.manifest import NAME, artifacts_in, versions
from foundry.engine.models import local_folder
from foundry.engine.workspace import Workspace, read_json, write_json
from foundry.intake.checkpoint import Checkpoint, checkpoint_sha256
from foundry.spec.formats import Mix, parse_format, weight_bytes
from foundry.spec.job import JobSpec
from foundry.spec.record import parse
from foundry.spec.target import Budget, over_budget
from foundry.spec.variant import (
    Artifact,
    Lineage,
    Metrics,
    PrunePlan,
    VariantManifest,
    device_bytes,
    device_row,
)

_TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
_TERMS_BYTES = 1_000_000


class Made(NamedTuple):
    """What was made for one target."""

    spec: JobSpec
    budget: Budget
    student: Checkpoint
    rows: Sequence[Metrics]
    """One for each format that passed its check."""
    failed: Mapping[str, str]
    """Format -> why it is left out."""
    notes: Sequence[str]
    """What a user must know of the files that are shipped."""

    mix: Mix
    """The types of the mixed file; empty without one."""

    @property
    def parameters(self) -> int:
        return self.student.family.parameter_count(self.student.shape, self.student.present)


def sign(folder: Path, made: Made, workspace: Workspace) -> VariantManifest:
    """Complete a folder that holds the model; returns its manifest.

    The card comes last but one, the manifest last: it has all digests.
    """
    teacher = local_folder(workspace.inputs.teacher)
    plan_path = workspace.stage("prune", made.budget.target) / "plan.json"
    shutil.copyfile(plan_path, folder / "plan.json")
    write_json(folder / "spec.json", made.spec.model_dump(mode="json"))
    terms = _carry_terms(teacher, folder)
    manifest = _manifest(folder, made, workspace, teacher)
    plan = parse(PrunePlan, read_json(plan_path))
    write_card(folder / "README.md", manifest, plan, licence_of(teacher), terms, made.notes)
    manifest = manifest.model_copy(update={"files": artifacts_in(folder)})
    write_json(folder / NAME, manifest.model_dump(mode="json"))
    return manifest


def _carry_terms(teacher: Path, folder: Path) -> list[str]:
    """Copy the teacher's licence files; return their names."""
    found = {path for pattern in _TERMS for path in teacher.glob(pattern)}
    kept = sorted(p for p in found if p.is_file() and not p.is_symlink() and p.stat().st_size <= _TERMS_BYTES)
    for path in kept:
        shutil.copyfile(path, folder / path.name)
    return [path.name for path in kept]


def _manifest(folder: Path, made: Made, workspace: Workspace, teacher: Path) -> VariantManifest:
    target, files = made.budget.target, artifacts_in(folder)
    inputs, over = workspace.inputs, _over_budget(made, files)
    return VariantManifest(
        target=target,
        family=made.student.family.name,
        shape=made.student.shape,
        parameters=made.parameters,
        budget=made.budget,
        fits_budget=not over,
        over_budget=over,
        created_at=datetime.now(UTC),
        spec=made.spec,
        lineage=Lineage(
            teacher=made.spec.teacher,
            teacher_sha256=checkpoint_sha256(teacher),
            data=made.spec.data,
            data_sha256=inputs.data_sha256,
            versions=versions(),
        ),
        metrics=(*_earlier_metrics(workspace, target), *made.rows),
        failed_formats=dict(made.failed),
        files=files,
        training=_training(workspace, target),
        mix={role: str(kind) for role, kind in made.mix.items()},
    )


def _over_budget(made: Made, files: Sequence[Artifact]) -> tuple[str, ...]:
    """By the real file with its adapter, the peak measured here, and the speed predicted there."""
    student, row = made.student, device_row(made.rows, made.budget.format)
    return over_budget(
        made.budget, parameters=made.parameters, shape=student.shape, device_file_bytes=_device_bytes(made, files),
        peak_memory_bytes=row.peak_memory_bytes if row else None,
        decode_tokens_per_s=made.budget.decode_tokens_per_s(student.family, student.shape, student.present),
    )  # fmt: skip


def _device_bytes(made: Made, files: Sequence[Artifact]) -> int | None:
    """Bytes of the file that the device runs; of its tensors where that format was not asked for; None if it failed."""
    form = made.budget.format
    if form in made.failed:
        return None
    planned = weight_bytes(made.student.family, made.student.shape, parse_format(form), made.student.present)
    return device_bytes(files, form, planned)


def _earlier_metrics(workspace: Workspace, target: str) -> list[Metrics]:
    """What the evaluate stage measured."""
    path = workspace.stage("evaluate", target) / "metrics.json"
    return [parse(Metrics, row) for row in read_json(path)] if path.exists() else []


def _training(workspace: Workspace, target: str) -> dict[str, Any]:
    """What each training stage said of this target; a stage that was not run is absent."""
    found = {"distill": workspace.result("distill"), "lora": workspace.result("lora")}
    summaries = {stage: result.get("targets", {}).get(target) for stage, result in found.items()}
    return {stage: summary for stage, summary in summaries.items() if summary}
