"""Devices as tables, and the budget that follows from one."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from foundry.errors import UnknownTarget
from foundry.spec.family import Family, Shape
from foundry.spec.formats import Format, header_bytes, parse_format, weight_bytes
from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.record import Count, Record, parse


class Source(Record):
    """Where a figure of a profile comes from."""

    figure: str
    source: str


class DeviceProfile(Record):
    """A class of devices. `memory_bytes` is what the model may take, not what the device has."""

    name: str
    description: str
    memory_bytes: Count
    runtime_overhead_bytes: Count
    memory_bandwidth_bytes_per_s: Count
    context_tokens: Count
    minimum_tokens_per_s: Count
    runtime: str
    format: str
    sources: tuple[Source, ...]


class Budget(Record):
    """What a target allows. Exactly one of the two limits is set."""

    target: str
    format: str
    """The format that runs on the device: its bytes are what the limit is about."""
    context_tokens: int
    max_bytes: int | None = None
    """The file in `format` plus KV cache at `context_tokens`."""
    max_params: int | None = None

    def used_bytes(self, family: Family, shape: Shape, present: frozenset[str] = frozenset()) -> int:
        """The file in the device format plus the KV cache of one full context."""
        form = parse_format(self.format)
        file = weight_bytes(family, shape, form, present) + header_bytes(shape, form)
        return file + shape.kv_cache_bytes(self.context_tokens)

    def share(self, family: Family, shape: Shape, present: frozenset[str] = frozenset()) -> float:
        """How much of the budget a shape takes; above 1 it does not fit."""
        if self.max_params is not None:
            return family.parameter_count(shape, present) / self.max_params
        assert self.max_bytes is not None
        return self.used_bytes(family, shape, present) / self.max_bytes


@cache
def device_profiles() -> Mapping[str, DeviceProfile]:
    """Every table under data/devices by name."""
    found: dict[str, DeviceProfile] = {}
    for path in sorted((files("foundry") / "data" / "devices").iterdir(), key=lambda p: p.name):
        if path.name.endswith(".toml"):
            profile = parse(DeviceProfile, tomllib.loads(path.read_text(encoding="utf-8")), prefix=f"/{path.name}")
            found[profile.name] = profile
    return found


def budget_of(target: str | CustomTarget, formats: tuple[str, ...], context_limit: int | None = None) -> Budget:
    """The budget of a target; raise `UnknownTarget` with the list of profiles.

    `context_limit` is the teacher's own context: a cache is never longer than that.
    """
    if isinstance(target, CustomTarget):
        default = next((f for f in formats if parse_format(f).container == "gguf"), formats[0])
        context = min(target.context_tokens, context_limit or target.context_tokens)
        return Budget(
            target=target.name, format=target.format or default, context_tokens=context,
            max_bytes=target.max_bytes, max_params=target.max_params,
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
        max_bytes=profile.memory_bytes - profile.runtime_overhead_bytes,
    )  # fmt: skip


def budgets_of(spec: JobSpec, context_limit: int | None = None) -> tuple[Budget, ...]:
    """The budget of every target of a job, in its order."""
    return tuple(budget_of(target, spec.formats, context_limit) for target in spec.targets)


def device_format(form: Format, budget: Budget) -> bool:
    """Whether this format is the one that runs on the budget's device."""
    return str(form) == budget.format
