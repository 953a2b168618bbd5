"""`foundry plan`: which shapes fit, before any weight is read."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from foundry.cli import render
from foundry.errors import TeacherNotFound
from foundry.intake.checkpoint import INDEX, SINGLE, context_limit, open_checkpoint, open_config
from foundry.spec.family import Family, Shape
from foundry.spec.formats import parse_format, weight_bytes
from foundry.spec.job import CustomTarget, is_hub_id
from foundry.spec.record import Record, parse
from foundry.spec.search import balance, shapes_within
from foundry.spec.stages import Prune
from foundry.spec.target import Budget, DeviceProfile, budget_of, device_profiles

_WORTH = (
    "This is a guess from arithmetic: the job compares several shapes on the weights and your data and takes the best. "
    "Decoding speed is memory bandwidth over bytes read at a full context: a bound that runtimes come near, not reach."
)


class ShapePlan(Record):
    """One shape and what follows from it."""

    shape: Shape
    parameters: int
    parameters_ratio: float
    """Of the teacher's parameters."""
    format_bytes: dict[str, int]
    """Tensors alone; headers and tokenizer come on top."""
    kv_cache_bytes: int
    """One sequence as long as the budget's context, f16."""
    budget_ratio: float
    """How much of the budget is taken; above 1 it does not fit."""
    decode_tokens_per_s: dict[str, float]
    """For each device: memory bandwidth over the bytes that a token reads, all weights and one full KV cache."""


class Plan(Record):
    """The teacher, the budget, and the shapes that fit, best guess first."""

    family: str
    teacher: ShapePlan
    budget: Budget
    fitting_shapes: int
    """How many shapes fit and are not smaller along every axis than another that fits."""
    candidates: tuple[ShapePlan, ...]


def custom_target(max_params: str | None, max_bytes: str | None, form: str, context_tokens: int) -> CustomTarget:
    """A budget from the command line; numbers may be written 300e6."""
    fields = {"name": "custom", "max_params": max_params, "max_bytes": max_bytes}
    return parse(CustomTarget, {**fields, "format": form, "context_tokens": context_tokens})


def make_plan(teacher: Path, target: str | CustomTarget, form: str, top: int) -> Plan:
    """Search the shapes of a teacher that a target admits.

    Raises what `open_config` raises, `UnknownTarget`, or `BudgetUnreachable` with the smallest reachable size.
    """
    family, shape, present, limit = _open(teacher)
    budget = budget_of(target, (form,), limit)
    fitting = sorted(shapes_within(family, shape, budget, Prune().axes, present), key=lambda s: balance(shape, s))
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
            kv_cache_bytes=kv_cache_bytes,
            budget_ratio=budget.share(family, candidate, present),
            decode_tokens_per_s={
                profile.name: _decode_tokens_per_s(profile, family, candidate, present, kv_cache_bytes)
                for profile in device_profiles().values()
            },
        )

    return Plan(
        family=family.name,
        teacher=describe(shape),
        budget=budget,
        fitting_shapes=len(fitting),
        candidates=tuple(describe(candidate) for candidate in fitting[:top]),
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


def _decode_tokens_per_s(
    profile: DeviceProfile, family: Family, shape: Shape, present: frozenset[str], kv_cache_bytes: int
) -> float:
    read_bytes = weight_bytes(family, shape, parse_format(profile.format), present) + kv_cache_bytes
    return profile.memory_bandwidth_bytes_per_s / read_bytes


def show(plan: Plan) -> None:
    """The plan as a table, with what it is worth."""
    console, budget, teacher = render.out(), plan.budget, plan.teacher
    limit = f"{budget.max_params:,} parameters" if budget.max_params else render.size(budget.max_bytes or 0)
    parameters = render.number(teacher.parameters)
    console.print(Text(f"teacher: {plan.family}, {render.shape_text(teacher.shape)}, {parameters} parameters"))
    context = f"{budget.context_tokens:,} tokens"
    console.print(Text(f"budget of {budget.target}: {limit} as {budget.format}, KV cache at {context}"))
    if plan.candidates[0].shape == teacher.shape:
        console.print(Text("The teacher fits as it is; nothing needs to be cut.", style="green"))
    console.print(_table(plan))
    console.print(Text(f"{plan.fitting_shapes:,} shapes fit; the most even cut stands first. {_WORTH}", style="dim"))


def _table(plan: Plan) -> Table:
    """Fits into 80 columns; --json has more."""
    formats = list(dict.fromkeys(("safetensors", plan.budget.format)))
    headers = [name.replace(":", "\n").replace("safe", "safe-\n") for name in formats]
    speeds = [f"{name}\ntokens/s" for name in plan.teacher.decode_tokens_per_s]
    table = render.table(
        "layers × hidden\n× ffn × heads",
        right=["para-\nmeters", "of\nteacher", *headers, "of\nbudget", *speeds],
        narrow=True,
    )
    for row in plan.candidates:
        shape = row.shape
        table.add_row(
            f"{shape.layers}×{shape.hidden}×{shape.ffn}×{shape.heads}/{shape.kv_heads}",
            render.number(row.parameters), f"{row.parameters_ratio:.0%}",
            *(render.size(row.format_bytes[name]) for name in formats), f"{row.budget_ratio:.1%}",
            *(f"{speed:,.0f}" for speed in row.decode_tokens_per_s.values()),
        )  # fmt: skip
    return table
