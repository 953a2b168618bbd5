"""Variants: the list, one variant with its gates, files and lineage, and the names that point to it."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api.auth import caller, needs, project_id
from api.console.frame import refused
from api.console.sketch import bars, in_words
from api.pages import PageQuery
from api.state import state
from api.variants import AliasBody, point_alias
from foundry.errors import FoundryError
from foundry.spec.access import Scope
from foundry.spec.evaluation import Evaluation
from foundry.spec.measurement import Measurement
from foundry.spec.record import parse
from foundry.spec.resources import Variant
from foundry.spec.variant import Metrics, VariantManifest, device_bytes, device_row
from foundry.spec.weights import Shape
from foundry.spec.words import number, size

variants = Blueprint("variants", __name__)
_PLAN = "plan.json"
_SHOWN_EVALUATIONS = 5


class Gate(NamedTuple):
    """One thing that the target bounds."""

    name: str
    found: str
    bound: str
    passes: bool | None
    """None when it was not measured."""
    share: float | None
    """Of the bound, 0 and more."""


@variants.get("/variants")
@needs(Scope.VARIANTS_READ)
def list_variants() -> str:
    """The project's variants, newest first."""
    query = parse(PageQuery, request.args.to_dict(), prefix="/query")
    page = state().variants.list(project_id(), None, query.limit, query.after)
    return render_template("variants.html", page=page, after=query.after)


@variants.get("/variants/<variant_id>")
@needs(Scope.VARIANTS_READ)
def get_variant(variant_id: str) -> str:
    """One variant: what it is, what it lost, where it came from and how it runs."""
    return page(variant_id)


@variants.post("/variants/<variant_id>/aliases")
@needs(Scope.VARIANTS_WRITE)
def put_alias(variant_id: str) -> AnyResponse | tuple[str, int]:
    """Let a name point to this variant."""
    name = request.form.get("alias", "").strip()
    try:
        point_alias(name, parse(AliasBody, {"variant_id": variant_id}))
    except FoundryError as error:
        return refused(error, lambda: page(variant_id))
    flash(f"{name} points to this variant now.")
    return redirect(url_for("variants.get_variant", variant_id=variant_id), 303)


@variants.post("/variants/<variant_id>/aliases/<alias>/delete")
@needs(Scope.VARIANTS_WRITE)
def delete_alias(variant_id: str, alias: str) -> AnyResponse:
    """Forget a name."""
    state().variants.get(project_id(), variant_id)
    state().aliases.delete(project_id(), alias)
    flash(f"The name {alias} is gone; the variant stays.")
    return redirect(url_for("variants.get_variant", variant_id=variant_id), 303)


@variants.post("/variants/<variant_id>/delete")
@needs(Scope.VARIANTS_WRITE)
def delete(variant_id: str) -> AnyResponse:
    """Delete a variant."""
    state().removal.variant(project_id(), variant_id)
    flash("The variant is deleted; its bytes go within two hours.")
    return redirect(url_for("variants.list_variants"), 303)


def page(variant_id: str, answer: object = None) -> str:
    """The page of one variant; `answer` is what it said when it was tried."""
    memory, project = state(), project_id()
    variant = memory.variants.get(project, variant_id)
    shipped = VariantManifest.model_validate(memory.variants.manifest(project, variant_id))
    teacher, measured = _teacher_shape(variant), memory.measurements.list(project, variant_id)
    return render_template(
        "variant.html", variant=variant, shipped=shipped, gates=gates_of(shipped), answer=answer,
        lineage=memory.variants.lineage(project, variant_id), can_try=memory.settings.serving_url is not None,
        can_see_job=Scope.JOBS_READ in caller().scopes, teacher=teacher, device_files=_device_files(shipped),
        drawing=bars(shipped.shape, teacher or shipped.shape),
        in_words=in_words(shipped.shape, teacher) if teacher else "",
        teacher_drawing=bars(teacher, teacher) if teacher else (), manifest=shipped.model_dump_json(indent=2),
        evaluated=evaluations_of(variant_id), measured=measured, senders=_senders(measured.data),
    )  # fmt: skip


def evaluations_of(model: str) -> Sequence[Evaluation]:
    """The latest evaluations of a variant or a model; none for a key that may not see them."""
    if Scope.JOBS_READ not in caller().scopes:
        return ()
    return state().evaluations.list(project_id(), _SHOWN_EVALUATIONS, model=model).data


def gates_of(shipped: VariantManifest) -> Sequence[Gate]:
    """What the budget bounds, and what was found."""
    budget = shipped.budget
    if budget.max_params is not None:
        ratio = shipped.parameters / budget.max_params
        return [
            Gate("Parameters", number(shipped.parameters), f"at most {number(budget.max_params)}", ratio <= 1, ratio)
        ]
    found = []
    row = device_row(shipped.metrics, budget.format)
    file_bytes = device_bytes(shipped.files, budget.format)
    if budget.max_bytes is not None:
        used = file_bytes and file_bytes + shipped.shape.kv_cache_bytes(budget.context_tokens)
        what = "File, adapter and cache" if budget.adapter_rank else "File and cache"
        found.append(_bytes_gate(f"{what} at {budget.context_tokens:,} tokens", used, budget.max_bytes))
    if budget.memory_bytes is not None:
        found.append(
            _bytes_gate("Memory of the whole process", row.peak_memory_bytes if row else None, budget.memory_bytes)
        )
    minimum = budget.speed.minimum_tokens_per_s
    if minimum is not None:
        speed = row.decode_tokens_per_s if row else None
        said = f"{speed:.3g} tokens/s" if speed else "not measured"
        where = f" on {row.hardware}" if row and row.hardware and speed else ""
        passes = None if speed is None else speed >= minimum
        found.append(Gate("Speed of decoding", said + where, f"at least {minimum} tokens/s", passes, None))
    return found


def row_of(shipped: VariantManifest, model: str) -> Metrics | None:
    """The measurements of a model."""
    return next((row for row in shipped.metrics if row.model == model), None)


def _bytes_gate(name: str, used: int | None, most: int) -> Gate:
    passes = None if used is None else used <= most
    return Gate(name, size(used) if used is not None else "not measured", f"at most {size(most)}", passes,
                None if used is None else used / most)  # fmt: skip


def _teacher_shape(variant: Variant) -> Shape | None:
    """From the plan that ships with the variant; None for one without."""
    if all(file.path != _PLAN for file in variant.files):
        return None
    path, _ = state().variants.file(project_id(), variant.id, _PLAN)
    return Shape.model_validate(json.loads(path.read_bytes())["teacher_shape"])


def _senders(measured: Sequence[Measurement]) -> Mapping[str, str]:
    """The names of the keys that measurements came with; none for a reader who may not look at keys."""
    if Scope.PROJECT_READ not in caller().scopes:
        return {}
    return {
        key_id: state().keys.get(project_id(), key_id).name for key_id in {one.key_id for one in measured} if key_id
    }


def _device_files(shipped: VariantManifest) -> list[str]:
    return [file.path for file in shipped.files if file.format == shipped.budget.format]
