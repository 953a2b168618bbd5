"""The form of a job and its spec: what a form says, and what a form shows of a spec that there is already."""

import json
from collections.abc import Mapping
from typing import Any

from flask import request
from werkzeug.datastructures import MultiDict

from api.console.forms import document, flat
from api.jobs import patched
from foundry.errors import FieldProblem, InvalidSpec
from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.lifecycle import STAGES
from foundry.spec.stages import Prune

OPTIONAL_STAGES = ("correct", "distill", "lora")
LIST_FIELDS = frozenset({"targets", "formats", "prune.axes"})
FIELDS = frozenset(
    {
        "name", "teacher", "data", "seed", "priority", "prune.axes", "prune.candidates", "prune.calibration_tokens",
        "correct.method", "correct.tokens", "distill.tokens", "distill.learning_rate", "distill.loss",
        "distill.optimizer", "distill.patience_looks", "distill.time_budget_s", "lora.tokens", "lora.rank",
        "evaluate.suite", "evaluate.tokens", "targets", "formats",
    }
)  # fmt: skip
"""What has a field of its own; everything else of a spec goes through the field for JSON."""
OWN_TARGET = ("own.name", "own.limit", "own.amount", "own.context_tokens")
_CHOOSE = {"targets": "choose a target, or describe a device of your own", "formats": "choose at least one format"}
_OTHER = frozenset({"on", "more", "parent", *OWN_TARGET})


def spec_document(form: MultiDict[str, str]) -> dict[str, Any]:
    """The spec that a form means, not yet checked; raise `InvalidSpec` when its field for JSON holds none."""
    found = document(form, LIST_FIELDS, _OTHER)
    on = form.getlist("on")
    for stage in OPTIONAL_STAGES:
        found[stage] = found.get(stage, {}) if stage in on else None
    own = {name.removeprefix("own."): form.get(name, "").strip() for name in OWN_TARGET}
    if own["name"]:
        context = {"context_tokens": own["context_tokens"]} if own["context_tokens"] else {}
        described = {"name": own["name"], own["limit"] or "max_bytes": own["amount"], **context}
        found["targets"] = [*found.get("targets", ()), described]
    whole = patched(found, _more(form.get("more", "")))
    if missing := [name for name in ("targets", "formats") if not whole.get(name)]:
        raise InvalidSpec([FieldProblem(pointer=f"/{name}", code="missing", detail=_CHOOSE[name]) for name in missing])
    return whole


def _more(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec([FieldProblem(pointer="/more", code="json_invalid", detail=f"not JSON: {error}")]) from error
    if not isinstance(found, dict):
        detail = 'give an object, such as {"distill": {"temperature": 2}}'
        raise InvalidSpec([FieldProblem(pointer="/more", code="json_invalid", detail=detail)])
    return found


def fresh_values(dataset_id: str, teacher: str) -> MultiDict[str, str]:
    """The fields of a form that nobody has touched yet."""
    values: MultiDict[str, str] = MultiDict({"data": dataset_id, "teacher": teacher})
    values.setlist("on", ["distill"])
    values.setlist("formats", list(JobSpec.model_fields["formats"].default))
    values.setlist("prune.axes", list(Prune().axes))
    return values


def values_of(spec: JobSpec) -> MultiDict[str, str]:
    """The fields of a form that means this spec."""
    plain = spec.model_dump(mode="json")
    targets = plain.pop("targets")
    values = fresh_values("", "")
    values.setlist("on", [stage for stage in OPTIONAL_STAGES if getattr(spec, stage) is not None])
    named = [target for target in spec.targets if isinstance(target, str)]
    described = [_set_fields(target) for target in targets if not isinstance(target, str)]
    values.setlist("targets", named)
    if len(described) == 1 and (own := _own(described[0])) is not None:
        values.update(own)
        described = []
    rest: dict[str, Any] = {"targets": [*named, *described]} if described else {}
    usual = _defaults(spec)
    for name, value in flat(plain).items():
        if name in LIST_FIELDS:
            values.setlist(name, list(value))
        elif value is None or (name in usual and usual[name] == value):
            continue
        elif name in FIELDS and isinstance(value, str | int | float):
            values[name] = str(value)
        else:
            rest = patched(rest, _nested(name, value))
    values["more"] = json.dumps(rest, indent=2) if rest else ""
    return values


def _defaults(spec: JobSpec) -> Mapping[str, Any]:
    """What an empty field stands for, of every stage that the spec has."""
    stages = {name: type(stage)() for name in STAGES if (stage := getattr(spec, name)) is not None}
    fields = flat({name: stage.model_dump(mode="json") for name, stage in stages.items()})
    return {name: field.default for name, field in JobSpec.model_fields.items() if not field.is_required()} | fields


def _set_fields(target: dict[str, Any]) -> dict[str, Any]:
    """A described device without what it leaves to the defaults."""
    limits = {"max_bytes", "max_params", "memory_bytes"} & {name for name, value in target.items() if value is not None}
    usual = CustomTarget(name="any", max_params=1).model_dump(mode="json")
    return {name: value for name, value in target.items() if name in {"name", *limits} or value != usual[name]}


def posted_values() -> MultiDict[str, str]:
    """The fields as they were sent."""
    return MultiDict(request.form)


def _own(target: dict[str, Any]) -> dict[str, str] | None:
    """The fields of a described device; None when it says more than they can."""
    limit = next(name for name in ("max_bytes", "max_params", "memory_bytes") if target.get(name) is not None)
    if set(target) - {"name", limit, "context_tokens"}:
        return None
    own = {"own.name": target["name"], "own.limit": limit, "own.amount": str(target[limit])}
    return own | ({"own.context_tokens": str(target["context_tokens"])} if "context_tokens" in target else {})


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)
