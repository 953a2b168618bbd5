"""What a variant's folder has to serve: checked, chosen, and named."""

from pathlib import Path
from typing import Literal, NamedTuple

from foundry.engine.export.manifest import SAFETENSORS_FOLDER, verify_folder
from foundry.errors import ServeFailed
from foundry.spec.formats import parse_format
from foundry.spec.variant import VariantManifest

Backend = Literal["llama.cpp", "transformers"]
BACKENDS: dict[str, Backend] = {"gguf": "llama.cpp", "safetensors": "transformers"}
"""Container -> what serves it, the preferred one first."""


class Offer(NamedTuple):
    """One model to serve."""

    backend: Backend
    model: Path
    """A GGUF file, or a folder for transformers."""
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
    container = parse_format(chosen).container
    if chosen not in shipped or container not in BACKENDS:
        servable = [name for name in shipped if parse_format(name).container in BACKENDS]
        raise ServeFailed(
            f"{folder} has nothing to serve as {chosen}; it holds {', '.join(sorted(shipped)) or 'no model'}"
            + (f"; give --format {servable[0]}" if servable else "")
        )
    return Offer(
        backend=BACKENDS[container],
        model=folder / (SAFETENSORS_FOLDER if container == "safetensors" else shipped[chosen]),
        form=chosen,
        name=f"{Path(manifest.spec.teacher.partition('@')[0]).name}-{manifest.target}",
        context_tokens=manifest.budget.context_tokens,
        signed_by=signed_by,
        manifest=manifest,
    )


def _preferred(manifest: VariantManifest, shipped: list[str]) -> str:
    """The device's own format, else the smallest GGUF, else whatever can be served."""
    if manifest.budget.format in shipped and parse_format(manifest.budget.format).container in BACKENDS:
        return manifest.budget.format
    sizes = {file.format: file.bytes for file in manifest.files if file.format in shipped}
    ranked = sorted(
        (form for form in shipped if parse_format(form).container in BACKENDS),
        key=lambda form: (list(BACKENDS).index(parse_format(form).container), sizes.get(form, 0)),
    )
    return ranked[0] if ranked else manifest.budget.format
