"""Variants side by side: size against quality, with the teacher where it was measured."""

from collections.abc import Sequence
from typing import NamedTuple

from flask import Blueprint, render_template, request

from api.auth import needs, project_id
from api.console.variants import row_of
from api.state import state
from foundry.spec.access import Scope
from foundry.spec.resources import Variant
from foundry.spec.variant import Metrics, VariantManifest, device_bytes, device_row

comparison = Blueprint("comparison", __name__)
_MOST = 24
_STUDENTS = ("lora", "distilled", "pruned")
"""What ships is the last of these that a job made."""


class Compared(NamedTuple):
    """One variant with what the comparison says of it."""

    variant: Variant
    shipped: VariantManifest
    device_bytes: int
    """Of the format that the device runs, its adapter included; of all files where that is not there."""
    row: Metrics | None
    """The student as it ships, on the held-out text."""
    device_row: Metrics | None
    teacher: Metrics | None


@comparison.get("/compare")
@needs(Scope.VARIANTS_READ)
def show() -> str:
    """The variants named by `variant`, those of a `job`, or the latest of the project."""
    job_id = request.args.get("job") or None
    chosen = request.args.getlist("variant")[:_MOST]
    latest = state().variants.list(project_id(), job_id, limit=_MOST).data
    offered = {variant.id: variant for variant in latest}
    for variant_id in chosen:
        if variant_id not in offered:
            offered[variant_id] = state().variants.get(project_id(), variant_id)
    compared = [_compared(offered[variant_id]) for variant_id in chosen or [variant.id for variant in latest]]
    grounds = {(one.shipped.lineage.teacher_sha256, one.shipped.lineage.data_sha256) for one in compared}
    return render_template(
        "compare.html", compared=compared, offered=list(offered.values()), chosen=chosen, job_id=job_id,
        comparable=len(grounds) <= 1, points=_points(compared),
    )  # fmt: skip


def _compared(variant: Variant) -> Compared:
    shipped = VariantManifest.model_validate(state().variants.manifest(project_id(), variant.id))
    rows = (row_of(shipped, name) for name in _STUDENTS)
    form = shipped.budget.format
    return Compared(
        variant, shipped, device_bytes(shipped.files, form) or variant.bytes, next(filter(None, rows), None),
        device_row(shipped.metrics, form), row_of(shipped, "teacher"),
    )  # fmt: skip


def _points(compared: Sequence[Compared]) -> list[dict[str, object]]:
    """What the plot shows: bytes on the device against held-out loss; the teacher in bfloat16."""
    found: list[dict[str, object]] = []
    teachers: dict[str, Metrics] = {}
    for one in compared:
        if one.row is not None and one.row.held_out_loss is not None:
            label = f"{one.shipped.target} ({one.variant.id[-6:]})"
            found.append({"label": label, "bytes": one.device_bytes, "loss": one.row.held_out_loss, "kind": "variant"})
        if one.teacher is not None and one.teacher.held_out_loss is not None and one.teacher.parameters:
            teachers.setdefault(one.shipped.lineage.teacher_sha256 + one.shipped.lineage.data_sha256, one.teacher)
    for row in teachers.values():
        size = 2 * (row.parameters or 0)
        found.append({"label": "teacher", "bytes": size, "loss": row.held_out_loss, "kind": "teacher"})
    return found
