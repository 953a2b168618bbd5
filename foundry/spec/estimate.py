"""What a job would give, by arithmetic alone: no weights are read, nothing runs."""

from foundry.errors import UserError
from foundry.spec.adapter import adapter_bytes, takes_adapter
from foundry.spec.family import Family
from foundry.spec.formats import bytes_read_per_token, parse_format, weight_bytes
from foundry.spec.job import JobSpec
from foundry.spec.resources import Resource
from foundry.spec.search import balance, shapes_within
from foundry.spec.target import Budget, budget_of
from foundry.spec.weights import Shape


class FormatEstimate(Resource):
    """The tensors of the student in one format; headers and tokenizer come on top."""

    format: str
    """As in `formats` of the spec."""
    bytes: int
    """Of all its tensors, by arithmetic."""
    adapter_bytes: int = 0
    """Of the LoRA adapter that the format's runtime loads beside them, from above; 0 without one."""


class TargetEstimate(Resource):
    """The student to expect for one target.

    The job compares several such shapes by measurement and may take another.
    """

    target: str
    """As in `targets` of the spec."""
    budget: Budget
    """What the target allows."""
    shape: Shape
    """The student's lengths along every axis."""
    parameters: int
    """Of the student."""
    parameters_ratio: float
    """Of the teacher's parameters."""
    cuts_nothing: bool
    """Whether the teacher fits as it is."""
    formats: tuple[FormatEstimate, ...]
    """What the student takes in each format of the spec."""
    kv_cache_bytes: int
    """Of one sequence as long as the budget's context, in f16."""
    adapter_bytes: int = 0
    """Of the LoRA adapter that ships beside the weights, from above; 0 without one."""
    used_bytes: int
    """The file in the budget's format, that cache and that adapter."""
    budget_ratio: float
    """How much of the budget is taken, 0 to 1."""
    bytes_read_per_token: int
    """Weights that one token reads in the budget's format: of the experts only the active ones."""
    decode_tokens_per_s_bound: float | None = None
    """The device's memory bandwidth over the weights, adapter and full KV cache that a token reads. None where the
    target says no bandwidth."""
    first_token_s_bound: float | None = None
    """Seconds to the first token of a prompt of 512, by the device's compute. None where the target says none."""
    too_slow: bool = False
    """Whether it must decode more slowly than the target's minimum."""


class Estimate(Resource):
    """The answer to "what would this job give?"."""

    family: str
    """The teacher's, as GET /v1/families lists them."""
    teacher_shape: Shape
    """The teacher's lengths along every axis."""
    teacher_parameters: int
    """By arithmetic from its shape."""
    targets: tuple[TargetEstimate, ...]
    """In the order of the spec."""


def estimate(
    spec: JobSpec,
    family: Family,
    teacher: Shape,
    present: frozenset[str] = frozenset(),
    context_limit: int | None = None,
) -> Estimate:
    """The most even cut of the teacher that each target's budget admits.

    `context_limit` is the teacher's own context in tokens. Raises `UnknownTarget`, or `BudgetUnreachable` with the
    smallest reachable size; the pointer names the target.
    """
    targets = []
    for place, target in enumerate(spec.targets):
        try:
            budget = budget_of(target, spec.formats, context_limit, spec.attached_rank)
            found = shapes_within(family, teacher, budget, spec.prune.axes, present, spec.formats)
            shape = min(found, key=lambda s: balance(teacher, s))
        except UserError as error:
            error.pointer = f"/targets/{place}"
            raise
        targets.append(_target_estimate(spec, budget, family, teacher, shape, present))
    return Estimate(
        family=family.name,
        teacher_shape=teacher,
        teacher_parameters=family.parameter_count(teacher, present),
        targets=tuple(targets),
    )


def _target_estimate(
    spec: JobSpec, budget: Budget, family: Family, teacher: Shape, shape: Shape, present: frozenset[str]
) -> TargetEstimate:  # fmt: skip
    parameters = family.parameter_count(shape, present)
    sizes = {text: weight_bytes(family, shape, parse_format(text), present) for text in {*spec.formats, budget.format}}
    read_bytes = bytes_read_per_token(family, shape, parse_format(budget.format), present)
    beside = adapter_bytes(family, shape, spec.attached_rank, present)
    decode, minimum = budget.decode_tokens_per_s(family, shape, present), budget.speed.minimum_tokens_per_s
    return TargetEstimate(
        target=budget.target,
        budget=budget,
        shape=shape,
        parameters=parameters,
        parameters_ratio=parameters / family.parameter_count(teacher, present),
        cuts_nothing=shape == teacher,
        formats=tuple(
            FormatEstimate(format=text, bytes=sizes[text], adapter_bytes=beside if takes_adapter(text) else 0)
            for text in spec.formats
        ),
        kv_cache_bytes=shape.kv_cache_bytes(budget.context_tokens),
        adapter_bytes=budget.adapter_bytes(family, shape, present),
        used_bytes=budget.used_bytes(family, shape, present),
        budget_ratio=budget.share(family, shape, present),
        bytes_read_per_token=read_bytes,
        decode_tokens_per_s_bound=decode,
        first_token_s_bound=budget.first_token_s(family, shape, present),
        too_slow=decode is not None and minimum is not None and decode < minimum,
    )
