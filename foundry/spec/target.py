"""The budget that follows from a target."""

from typing import Annotated

from pydantic import Field

from foundry.errors import UnknownTarget
from foundry.spec.adapter import adapter_bytes, takes_adapter
from foundry.spec.device import device_profiles
from foundry.spec.family import Family
from foundry.spec.formats import Format, header_bytes, parse_format, weight_bytes
from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.record import Record
from foundry.spec.speed import Speed, decode_tokens_per_s, first_token_s
from foundry.spec.weights import Shape


class Budget(Record):
    """What a target allows. Exactly one of the two limits is set."""

    target: str
    """Whose budget it is."""
    format: str
    """The format that runs on the device: its bytes are what the limit is about."""
    context_tokens: int
    """Length of the text whose KV cache counts: the target's, but no longer than the teacher's own."""
    max_bytes: int | None = None
    """The file in `format` plus KV cache at `context_tokens`."""
    max_params: int | None = None
    """Parameters of the model; then bytes are not counted."""
    memory_bytes: int | None = None
    """What the whole process may hold, the runtime's own included; compared with what was measured."""
    speed: Speed = Speed()
    """What bounds its speed, as far as the target says."""
    adapter_rank: Annotated[int, Field(ge=0)] = 0
    """Of a LoRA adapter that the device loads beside the file; 0 without one. Its bytes count as the file's do."""

    def decode_tokens_per_s(self, family: Family, shape: Shape, present: frozenset[str] = frozenset()) -> float | None:
        """Predicted, at a full context; None where the target says no bandwidth."""
        return decode_tokens_per_s(
            self.speed, self.format, self.context_tokens, family, shape, present, self.adapter_rank
        )

    def first_token_s(self, family: Family, shape: Shape, present: frozenset[str] = frozenset()) -> float | None:
        """Predicted, of a prompt of `speed.PROMPT_TOKENS`; None where the target says no compute."""
        return first_token_s(self.speed, self.format, family, shape, present, adapter_rank=self.adapter_rank)

    def adapter_bytes(self, family: Family, shape: Shape, present: frozenset[str] = frozenset()) -> int:
        """What the adapter takes; 0 without one."""
        return adapter_bytes(family, shape, self.adapter_rank, present)

    def used_bytes(self, family: Family, shape: Shape, present: frozenset[str] = frozenset()) -> int:
        """The file in the device format, the adapter beside it, and the KV cache of one full context."""
        form = parse_format(self.format)
        file = weight_bytes(family, shape, form, present) + header_bytes(shape, form)
        return file + self.adapter_bytes(family, shape, present) + shape.kv_cache_bytes(self.context_tokens)

    def share(self, family: Family, shape: Shape, present: frozenset[str] = frozenset()) -> float:
        """How much of the budget a shape takes; above 1 it does not fit."""
        if self.max_params is not None:
            return family.parameter_count(shape, present) / self.max_params
        assert self.max_bytes is not None
        return self.used_bytes(family, shape, present) / self.max_bytes


def over_budget(
    budget: Budget, *, parameters: int, shape: Shape, device_file_bytes: int | None,
    peak_memory_bytes: int | None = None, decode_tokens_per_s: float | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Why a variant does not fit its budget; empty when it does.

    The file that runs on the device counts with its real size and that of its adapter, plus the KV cache; the peak of
    the whole process counts as measured, and the speed as measured or predicted, where they are known.
    `device_file_bytes` is None when there is no such file: a variant whose device format failed fits nothing.
    """
    if budget.max_params is not None:
        over = parameters > budget.max_params
        return (f"{parameters:,} parameters are more than {budget.max_params:,}",) if over else ()
    assert budget.max_bytes is not None
    if device_file_bytes is None:
        return (f"there is no {budget.format}, which the device runs",)
    reasons = []
    used = device_file_bytes + shape.kv_cache_bytes(budget.context_tokens)
    if used > budget.max_bytes:
        what = "file, adapter" if budget.adapter_rank else "file"
        reasons.append(
            f"{what} and KV cache at {budget.context_tokens:,} tokens take {used:,} bytes, "
            f"more than {budget.max_bytes:,}"
        )
    if peak_memory_bytes and budget.memory_bytes and peak_memory_bytes > budget.memory_bytes:
        reasons.append(f"its process held {peak_memory_bytes:,} bytes, more than {budget.memory_bytes:,}")
    minimum = budget.speed.minimum_tokens_per_s
    if decode_tokens_per_s and minimum and decode_tokens_per_s < minimum:
        reasons.append(f"it decodes {decode_tokens_per_s:.3g} tokens/s, less than {minimum}")
    return tuple(reasons)


def budget_of(
    target: str | CustomTarget, formats: tuple[str, ...], context_limit: int | None = None, adapter_rank: int = 0
) -> Budget:
    """The budget of a target; raise `UnknownTarget` with the list of profiles.

    `context_limit` is the teacher's own context: a cache is never longer than that. `adapter_rank` is that of a LoRA
    adapter beside the weights, which every runtime but ONNX Runtime takes.
    """
    found = _budget_of(target, formats, context_limit)
    counts = adapter_rank and takes_adapter(found.format)
    return found.model_copy(update={"adapter_rank": adapter_rank}) if counts else found


def _budget_of(target: str | CustomTarget, formats: tuple[str, ...], context_limit: int | None) -> Budget:
    if isinstance(target, CustomTarget):
        default = next((f for f in formats if parse_format(f).container == "gguf"), formats[0])
        context = min(target.context_tokens, context_limit or target.context_tokens)
        return Budget(
            target=target.name, format=target.format or default, context_tokens=context,
            max_bytes=target.file_and_cache_bytes, max_params=target.max_params, memory_bytes=target.memory_bytes,
            speed=target.speed,
        )  # fmt: skip
    profile = device_profiles().get(target)
    if profile is None:
        raise UnknownTarget(
            f"unknown target {target!r}; the targets are {', '.join(device_profiles())}, "
            "or describe your own: {name: kiosk, max_bytes: 300e6}",
            pointer="/targets",
        )
    return Budget(
        target=profile.name, format=profile.format,
        context_tokens=min(profile.context_tokens, context_limit or profile.context_tokens),
        max_bytes=profile.max_bytes, memory_bytes=profile.memory_bytes, speed=profile.speed,
    )  # fmt: skip


def budgets_of(spec: JobSpec, context_limit: int | None = None) -> tuple[Budget, ...]:
    """The budget of every target of a job, in its order."""
    return tuple(budget_of(target, spec.formats, context_limit, spec.attached_rank) for target in spec.targets)


def device_format(form: Format, budget: Budget) -> bool:
    """Whether this format is the one that runs on the budget's device."""
    return str(form) == budget.format
