"""What a variant's folder has to serve: checked, chosen, and named."""

from pathlib import Path
from typing import NamedTuple

from foundry.engine.export.manifest import verify_folder
from foundry.errors import ServeFailed
from foundry.spec.formats import parse_format
from foundry.spec.variant import VariantManifest

_SERVED = "gguf"
"""The container that llama.cpp's server opens; for safetensors `vllm serve` and `transformers serve` do the same."""


class Offer(NamedTuple):
    """One model to serve."""

    model: Path
    """A GGUF file."""
    form: str
    """The format, such as gguf:q4_k_m."""
    name: str
    """What clients call the model."""
    context_tokens: int
    signed_by: str | None
    manifest: VariantManifest


def open_variant(folder: Path, form: str | None = None, trusted: str | None = None) -> Offer:
    """Check every byte of a folder and choose what to serve: the format asked for, or the one its device runs.

    Raises `ArtifactDamaged` and `NotTrusted` for a folder that is not as it was made, `UnknownFormat`, and
    `ServeFailed` when the folder holds no such format.
    """
    manifest, signed_by = verify_folder(folder, trusted, may_be_unsigned=True)
    shipped = {file.format: file.path for file in manifest.files if file.format is not None}
    chosen = form if form is not None else _preferred(manifest, list(shipped))
    servable = [form for form in shipped if _is_served(form)]
    if chosen not in servable:
        raise ServeFailed(
            f"{folder} has nothing to serve as {chosen}; it holds {', '.join(sorted(shipped)) or 'no model'}"
            + (
                f"; give --format {servable[0]}"
                if servable
                else "; `foundry serve` runs GGUF files: ask the job for one"
            )
        )
    return Offer(
        model=folder / shipped[chosen],
        form=chosen,
        name=f"{Path(manifest.spec.teacher.partition('@')[0]).name}-{manifest.target}",
        context_tokens=manifest.budget.context_tokens,
        signed_by=signed_by,
        manifest=manifest,
    )


def _preferred(manifest: VariantManifest, shipped: list[str]) -> str:
    """The device's own format where it is served, else the smallest GGUF."""
    if manifest.budget.format in shipped and _is_served(manifest.budget.format):
        return manifest.budget.format
    sizes = {file.format: file.bytes for file in manifest.files if file.format in shipped}
    ranked = sorted(filter(_is_served, shipped), key=lambda form: sizes.get(form, 0))
    return ranked[0] if ranked else manifest.budget.format


def _is_served(form: str) -> bool:
    return parse_format(form).container == _SERVED
