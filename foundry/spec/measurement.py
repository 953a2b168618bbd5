"""What a variant did on a device, and whether that is within a target's budget."""

import math
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, field_validator

from foundry.spec.formats import FORMATS
from foundry.spec.record import Count, CreatedAt, Id, Record
from foundry.spec.resources import Resource
from foundry.spec.target import Budget, over_budget
from foundry.spec.variant import WITH_ADAPTER, Metrics, VariantManifest

_FIGURES = ("file_bytes", "prompt_tokens_per_s", "decode_tokens_per_s", "load_ms", "peak_memory_bytes")
"""What a device is measured by."""


class NewMeasurement(Record):
    """What `foundry measure --upload` sends."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the manifest.json that was measured: figures of other files are not taken."""
    metrics: Metrics
    """`model` is the format that was measured; `hardware` and `runtime` have to be there."""
    context_tokens: Count
    """Of the cache while it was measured."""
    device: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """What people call the device."""
    target: Annotated[str, Field(max_length=200)] | None = None
    """Judge by this target's budget; by default the one that the variant was made for."""

    @field_validator("metrics")
    @classmethod
    def _says_where(cls, metrics: Metrics) -> Metrics:
        missing = [name for name in ("hardware", "runtime") if not getattr(metrics, name)]
        if missing:
            raise ValueError(f"{' and '.join(missing)} missing: a figure without its machine says nothing")
        if (form := metrics.model.removesuffix(WITH_ADAPTER)) not in FORMATS:
            raise ValueError(f"model {form!r:.80} is no format; there are {', '.join(FORMATS)}")
        for name in _FIGURES:
            if (value := getattr(metrics, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} {value:g} cannot have been measured; leave it out or give what was")
        return metrics


class Judged(NamedTuple):
    """A measurement against a budget."""

    target: str
    fits_budget: bool | None
    """None where the figures do not settle it: of another format, or with a shorter context than the target's."""
    over_budget: tuple[str, ...]


class Measurement(Resource):
    """What a variant did on one machine, as whoever measured it says. The variant's own manifest stays as it is."""

    id: Id
    variant_id: str
    """The variant that was measured."""
    device: str | None = None
    """What whoever measured it calls the device; null where it was not named."""
    target: str
    """Whose budget it was judged by."""
    context_tokens: int
    """Of the cache while it was measured."""
    metrics: Metrics
    """What was measured, with the hardware and the runtime."""
    fits_budget: bool | None = None
    """None where the figures do not settle it: of another format, or with a shorter context than the target's."""
    over_budget: tuple[str, ...] = ()
    """Why it does not fit."""
    key_id: str | None = None
    """The key that it was sent with; null for a measurement from before this was kept."""
    created_at: CreatedAt


def judge(new: NewMeasurement, manifest: VariantManifest, budget: Budget) -> Judged:
    """Compare what was measured with a budget."""
    metrics = new.metrics
    if metrics.model.removesuffix(WITH_ADAPTER) != budget.format:
        return Judged(budget.target, None, ())
    over = over_budget(
        budget, parameters=manifest.parameters, shape=manifest.shape, device_file_bytes=metrics.file_bytes,
        peak_memory_bytes=metrics.peak_memory_bytes, decode_tokens_per_s=metrics.decode_tokens_per_s,
    )  # fmt: skip
    settled = bool(over) or new.context_tokens >= budget.context_tokens
    return Judged(budget.target, not over if settled else None, over)
