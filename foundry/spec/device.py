"""Classes of devices as tables, every figure with its source."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, Self

from pydantic import model_validator

from foundry.spec.formats import parse_format
from foundry.spec.record import Count, Record, parse
from foundry.spec.speed import Speed

FIGURES = (
    "memory_bytes", "runtime_overhead_bytes", "memory_bandwidth_bytes_per_s", "compute_ops_per_s", "context_tokens",
    "minimum_tokens_per_s",
)  # fmt: skip
"""Every number of a profile: each names where it comes from."""


class Source(Record):
    """Where a figure of a profile comes from."""

    figure: str
    kind: Literal["specification", "arithmetic", "rule", "measured"]
    """specification: a data sheet of the device. arithmetic: computed from such sheets, as the text says. rule: our
    own choice. measured: by a benchmark in docs/results.md."""
    source: str
    url: str | None = None
    checked_on: str
    """The day on which the figure was last compared with its source."""

    @model_validator(mode="after")
    def _citable(self) -> Self:
        if self.kind == "specification" and self.url is None:
            raise ValueError(f"{self.figure}: a specification is cited by its url")
        return self


class DeviceProfile(Record):
    """A class of devices. `memory_bytes` is what the model may take, not what the device has."""

    name: str
    description: str
    memory_bytes: Count
    """Weights, KV cache and the runtime's own."""
    runtime_overhead_bytes: Count
    memory_bandwidth_bytes_per_s: Count
    compute_ops_per_s: Count
    """Of the unit that `runtime` names, in the type that it multiplies in; a multiply-add is two."""
    context_tokens: Count
    minimum_tokens_per_s: Count
    runtime: str
    format: str
    """What the runtime opens first."""
    formats: tuple[str, ...]
    """Everything that the runtimes of such devices open, `format` among them."""
    sources: tuple[Source, ...]

    @property
    def max_bytes(self) -> int:
        """What is left for the file and the KV cache."""
        return self.memory_bytes - self.runtime_overhead_bytes

    @property
    def speed(self) -> Speed:
        """What bounds its speed."""
        return Speed(
            memory_bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s, compute_ops_per_s=self.compute_ops_per_s,
            minimum_tokens_per_s=self.minimum_tokens_per_s,
        )  # fmt: skip

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        sourced = [source.figure for source in self.sources]
        if sorted(sourced) != sorted(FIGURES):
            odd = sorted({*FIGURES} ^ {*sourced}) or sorted({f for f in sourced if sourced.count(f) > 1})
            raise ValueError(f"every figure has exactly one source; look at {', '.join(odd)}")
        if self.max_bytes <= 0:
            raise ValueError(
                f"memory_bytes {self.memory_bytes:,} leaves nothing beside the runtime's own "
                f"{self.runtime_overhead_bytes:,} bytes"
            )
        for form in (*self.formats, self.format):
            parse_format(form)
        if self.format not in self.formats:
            raise ValueError(f"format {self.format} is none of formats")
        if self.max_bytes * self.minimum_tokens_per_s > self.memory_bandwidth_bytes_per_s:
            raise ValueError(
                "a dense model that fills the memory would decode more slowly than minimum_tokens_per_s; lower one"
            )
        return self


@cache
def device_profiles() -> Mapping[str, DeviceProfile]:
    """Every table under data/devices by name, smallest memory first."""
    found = []
    for path in (files("foundry") / "data" / "devices").iterdir():
        if path.name.endswith(".toml"):
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            found.append(parse(DeviceProfile, table, prefix=f"/{path.name}"))
    return {profile.name: profile for profile in sorted(found, key=lambda p: (p.memory_bytes, p.name))}
