"""`foundry plan`: which shapes fit, by arithmetic before any weight is read, or measured on weights and data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

from rich.table import Table
from rich.text import Text

from foundry.cli import render
from foundry.errors import TeacherNotFound
from foundry.intake.checkpoint import INDEX, SINGLE, context_limit, open_checkpoint, open_config
from foundry.spec.device import DeviceProfile, device_profiles
from foundry.spec.family import Family
from foundry.spec.formats import bytes_read_per_token, parse_format, weight_bytes
from foundry.spec.job import CustomTarget, is_hub_id
from foundry.spec.record import Record, parse
from foundry.spec.search import balance, shapes_within, shares_cut
from foundry.spec.speed import decode_tokens_per_s
from foundry.spec.stages import Axis, Prune
from foundry.spec.target import Budget, budget_of
from foundry.spec.weights import Shape

Measure = Callable[[list[Shape], Budget], list[tuple[Shape, float]]]
"""Cuts some of the shapes and returns them with their KL to the teacher, best first."""

_MEASURED = (
    "KL to the teacher, nats per token, on text that nothing else read, right after the cut and a brief repair; a job "
    "repairs for longer and then distils."
)
_WORTH = (
    "This is a guess from arithmetic: the job compares several shapes on the weights and your data and takes the best. "
    "Decoding speed is memory bandwidth over bytes read at a full context: a bound that runtimes come near, not reach."
)

_WELL_KNOWN = ("smartphone", "laptop")


class ShapePlan(Record):
    """One shape and what follows from it."""

    shape: Shape
    parameters: int
    parameters_ratio: float
    """Of the teacher's parameters."""
    format_bytes: dict[str, int]
    """Tensors alone; headers and tokenizer come on top."""
    adapter_bytes: int
    """Of the LoRA adapter beside the weights; 0 without one."""
    kv_cache_bytes: int
    """One sequence as long as the budget's context, f16."""
    budget_ratio: float
    """How much of the budget is taken; above 1 it does not fit."""
    bytes_read_per_token: int
    """Weights that one token reads in the budget's format: of the experts only the active ones."""
    decode_tokens_per_s: dict[str, float]
    """For each device: memory bandwidth over the bytes that a token reads, those weights and one full KV cache."""
    first_token_s: float | None
    """Of a prompt of 512 tokens on the target, by its compute; None where the target says none."""
    balance: float
    """How much the cut is expected to hurt, by arithmetic alone: lower is better, 0 cuts nothing."""
    held_out_kl: float | None = None
    """Measured KL to the teacher right after the cut, nats per token; None without weights and data."""
    why: str = ""
    """Why it stands behind the first; empty for the first."""


class Plan(Record):
    """The teacher, the budget, and the shapes that fit, best guess first."""

    family: str
    teacher: ShapePlan
    budget: Budget
    writes_gguf: bool
    """Whether a GGUF can be written for this family; where not, its bytes are what it would take."""
    fitting_shapes: int
    """How many shapes fit and are not smaller along every axis than another that fits."""
    candidates: tuple[ShapePlan, ...]


def custom_target(max_params: str | None, max_bytes: str | None, form: str, context_tokens: int) -> CustomTarget:
    """A budget from the command line; numbers may be written 300e6."""
    fields = {"name": "custom", "max_params": max_params, "max_bytes": max_bytes}
    return parse(CustomTarget, {**fields, "format": form, "context_tokens": context_tokens})


def parse_axes(text: str | None) -> tuple[Axis, ...]:
    """Read 'ffn,hidden', None for the axes that a job cuts by default; raise `ValueError` with the list of axes."""
    if text is None:
        return Prune().axes
    known: dict[str, Axis] = {axis: axis for axis in get_args(Axis)}
    named = [name.strip() for name in text.split(",")]
    for name in named:
        if name not in known:
            raise ValueError(f"unknown axis {name!r}; the axes are {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(named))


def make_plan(
    teacher: Path, target: str | CustomTarget, form: str, top: int, axes: tuple[Axis, ...] | None = None,
    measure: Measure | None = None, adapter_rank: int = 0,
) -> Plan:  # fmt: skip
    """Search the shapes of a teacher that a target admits; `axes` are those that may be cut.

    With `measure` the candidates are those that it looked at. A LoRA adapter of `adapter_rank` is counted beside the
    weights. Raises what `open_config` raises, `UnknownTarget`, or
    `BudgetUnreachable` with the smallest reachable size.
    """
    family, shape, present, limit = _open(teacher)
    budget = budget_of(target, (form,), limit, adapter_rank)
    found = shapes_within(family, shape, budget, axes or Prune().axes, present)
    fitting = sorted(found, key=lambda s: balance(shape, s))
    kl = dict(measure(fitting, budget)) if measure and fitting != [shape] else {}
    ordered = list(kl) or fitting
    whole = family.parameter_count(shape, present)

    def describe(candidate: Shape) -> ShapePlan:
        parameters = family.parameter_count(candidate, present)
        kv_cache_bytes = candidate.kv_cache_bytes(budget.context_tokens)
        sizes = {
            name: weight_bytes(family, candidate, parse_format(name), present)
            for name in dict.fromkeys(("safetensors", "gguf:q8_0", budget.format, form))
        }
        return ShapePlan(
            shape=candidate,
            parameters=parameters,
            parameters_ratio=parameters / whole,
            format_bytes=sizes,
            adapter_bytes=budget.adapter_bytes(family, candidate, present),
            kv_cache_bytes=kv_cache_bytes,
            budget_ratio=budget.share(family, candidate, present),
            bytes_read_per_token=bytes_read_per_token(family, candidate, parse_format(budget.format), present),
            decode_tokens_per_s={
                profile.name: _fastest(profile, budget, family, candidate, present)
                for profile in device_profiles().values()
            },
            first_token_s=budget.first_token_s(family, candidate, present),
            balance=balance(shape, candidate),
            held_out_kl=kl.get(candidate),
            why=_why(shape, candidate, ordered[0], kl),
        )

    return Plan(
        family=family.name,
        teacher=describe(shape),
        budget=budget,
        writes_gguf=bool(family.gguf_architecture),
        fitting_shapes=len(fitting),
        candidates=tuple(describe(candidate) for candidate in ordered[:top]),
    )


def _open(teacher: Path) -> tuple[Family, Shape, frozenset[str], int | None]:
    """Family and shape; where the weights lie beside the config, also which optional tensors the teacher has."""
    if not teacher.exists() and is_hub_id(str(teacher)):
        raise TeacherNotFound(
            f"there is no folder {teacher}, and `plan` reads no model hub: download the model's config.json from there "
            "and give its path",
            pointer="/teacher",
        )
    if (teacher / SINGLE).exists() or (teacher / INDEX).exists():
        checkpoint = open_checkpoint(teacher)
        return checkpoint.family, checkpoint.shape, checkpoint.present, context_limit(checkpoint.config)
    config, family, shape = open_config(teacher)
    return family, shape, frozenset(), context_limit(config)


def _why(teacher: Shape, shape: Shape, first: Shape, kl: Mapping[Shape, float]) -> str:
    """What a shape cuts more and less than the first, in hundredths of the teacher's axis, and what comes of it."""
    if shape in (first, teacher):
        return ""
    ours, theirs = shares_cut(teacher, shape), shares_cut(teacher, first)
    more = {axis: 100 * (share - theirs[axis]) for axis, share in ours.items()}
    ordered = sorted((axis for axis in more if more[axis]), key=lambda axis: -more[axis])
    cuts = ", ".join(
        f"{axis} {abs(more[axis]):.{0 if abs(more[axis]) >= 1 else 1}f} % {'more' if more[axis] > 0 else 'less'}"
        for axis in ordered
    )
    if shape in kl:
        return f"cuts {cuts}; KL {kl[shape]:.4f} against {kl[first]:.4f}"
    return f"cuts {cuts}; balance {balance(teacher, shape):.3f} against {balance(teacher, first):.3f}"


def _fastest(profile: DeviceProfile, budget: Budget, family: Family, shape: Shape, present: frozenset[str]) -> float:
    found = decode_tokens_per_s(
        profile.speed, profile.format, budget.context_tokens, family, shape, present, budget.adapter_rank
    )
    assert found is not None  # every profile says its bandwidth
    return found


def show(plan: Plan) -> None:
    """The plan as a table, with what it is worth."""
    console, budget, teacher = render.out(), plan.budget, plan.teacher
    limit = f"{budget.max_params:,} parameters" if budget.max_params else render.size(budget.max_bytes or 0)
    parameters = render.number(teacher.parameters)
    console.print(Text(f"teacher: {plan.family}, {teacher.shape.in_words}, {parameters} parameters"))
    if parse_format(budget.format).container == "gguf" and not plan.writes_gguf:
        console.print(Text(f"llama.cpp does not run {plan.family}: no GGUF can be written, and its size is a guess."))
    context = f"{budget.context_tokens:,} tokens"
    beside = f", a LoRA adapter of rank {budget.adapter_rank}" if budget.adapter_rank else ""
    console.print(Text(f"budget of {budget.target}: {limit} as {budget.format}, KV cache at {context}{beside}"))
    if plan.candidates[0].shape == teacher.shape:
        console.print(Text("The teacher fits as it is; nothing needs to be cut.", style="green"))
    console.print(_table(plan))
    if len(plan.candidates) > 1:
        console.print(_reasons(plan), Text())
    measured = plan.candidates[0].held_out_kl is not None
    said = f"the nearest of {len(plan.candidates)} measured stands first. {_MEASURED}"
    said = said if measured else f"the most even cut stands first. {_WORTH}"
    console.print(Text(f"{plan.fitting_shapes:,} shapes fit; {said}", style="dim"))


def _table(plan: Plan) -> Table:
    """Fits into 80 columns; --json has more."""
    formats = list(dict.fromkeys(("safetensors", plan.budget.format)))
    headers = [name.replace(":", "\n").replace("safe", "safe-\n") for name in formats]
    devices = _shown_devices(plan)
    speeds = [f"{name}\ntokens/s" for name in devices]
    measured = plan.candidates[0].held_out_kl is not None
    table = render.table(
        "layers × hidden\n× ffn × heads" + "\n× experts" * bool(plan.teacher.shape.experts),
        right=[*["KL,\nnats"] * measured, "para-\nmeters", "kept", *headers, "of\nbudget", *speeds],
        narrow=True,
    )
    digits = len(str(len(plan.candidates)))
    for place, row in enumerate(plan.candidates, start=1):
        table.add_row(
            f"{place:>{digits}} {_lengths(row.shape)}", *([f"{row.held_out_kl:.4f}"] if measured else []),
            render.number(row.parameters), f"{row.parameters_ratio:.0%}",
            *(render.size(row.format_bytes[name]) for name in formats), f"{row.budget_ratio:.1%}",
            *(f"{row.decode_tokens_per_s[name]:,.0f}" for name in devices),
        )  # fmt: skip
    return table


def _shown_devices(plan: Plan) -> tuple[str, ...]:
    """The target where it is a profile, else two that everyone knows; --json has all."""
    known = plan.teacher.decode_tokens_per_s
    return (plan.budget.target,) if plan.budget.target in known else _WELL_KNOWN


def _lengths(shape: Shape) -> str:
    heads = str(shape.heads) if shape.heads == shape.kv_heads else f"{shape.heads}/{shape.kv_heads}"
    return f"{shape.layers}×{shape.hidden}×{shape.ffn}×{heads}" + f"×{shape.experts}" * bool(shape.experts)


def _reasons(plan: Plan) -> Table:
    """Why each of the others stands behind the first."""
    reasons = Table.grid(padding=(0, 1, 0, 0))
    for place, row in enumerate(plan.candidates[1:], start=2):
        reasons.add_row(str(place), Text(row.why))
    return reasons
