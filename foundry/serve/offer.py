"""What a variant's folder has to serve: checked, chosen, and named."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from foundry.engine.export.manifest import SAFETENSORS_FOLDER, adapter_of, verify_folder
from foundry.errors import ServeFailed
from foundry.spec.formats import parse_format
from foundry.spec.variant import VariantManifest

Runtime = Literal["llamacpp", "transformers"]
_SERVED: dict[Runtime, str] = {"llamacpp": "gguf", "transformers": "safetensors"}
"""The container that each runtime opens."""
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd")
"""What the drivers of NVIDIA and AMD put there. Asking torch would load it where llama.cpp serves without."""


class Offer(NamedTuple):
    """One model to serve."""

    model: Path
    """A GGUF file, or a folder for transformers."""
    runtime: Runtime
    form: str
    """The format, such as gguf:q4_k_m."""
    name: str
    """What clients call the model."""
    context_tokens: int
    signed_by: str | None
    manifest: VariantManifest
    adapter: Path | None = None
    """A LoRA adapter on top: a GGUF file, or the folder for PEFT."""


def open_variant(
    folder: Path, form: str | None = None, trusted: str | None = None, *, runtime: str | None = None,
    with_adapter: bool = True,
) -> Offer:  # fmt: skip
    """Check every byte of a folder and choose what to serve: the format asked for, or the one its device runs.

    Raises `ArtifactDamaged` and `NotTrusted` for a folder that is not as it was made, `UnknownFormat`, and
    `ServeFailed` when the folder holds no such format or the runtime is unknown.
    """
    if runtime is not None and runtime not in get_args(Runtime):
        raise ServeFailed(
            f"--runtime {runtime} is none of {', '.join(get_args(Runtime))}; other servers, such as vLLM, are started "
            f"on their own over the plain model in {folder / SAFETENSORS_FOLDER}"
        )
    manifest, signed_by = verify_folder(folder, trusted, may_be_unsigned=True)
    shipped = {file.format: file.path for file in manifest.files if file.format is not None}
    served = [one for one in shipped if _runtime_of(one) is not None and runtime in (None, _runtime_of(one))]
    chosen = form if form is not None else _preferred(manifest, served)
    found = _runtime_of(chosen) if chosen in served else None
    if chosen is None or found is None:
        raise ServeFailed(_nothing(folder, chosen, runtime, list(shipped), served))
    container = parse_format(chosen).container
    adapter = adapter_of(manifest, container) if with_adapter else None
    return Offer(
        model=folder / (SAFETENSORS_FOLDER if container == "safetensors" else shipped[chosen]),
        runtime=found,
        form=chosen,
        name=f"{Path(manifest.spec.teacher.partition('@')[0]).name}-{manifest.target}",
        context_tokens=manifest.budget.context_tokens,
        signed_by=signed_by,
        manifest=manifest,
        adapter=None if adapter is None else folder / adapter,
    )


def _runtime_of(form: str) -> Runtime | None:
    """Who opens a format; None for what nobody serves."""
    container = parse_format(form).container
    return next((runtime for runtime, opened in _SERVED.items() if opened == container), None)


def _preferred(manifest: VariantManifest, served: list[str]) -> str | None:
    """safetensors where there is a GPU and what serves on it; else the device's format, else the smallest GGUF."""
    if "safetensors" in served and has_accelerator() and find_spec("fastapi") is not None:
        return "safetensors"
    if manifest.budget.format in served:
        return manifest.budget.format
    sizes = {file.format: file.bytes for file in manifest.files}
    ranked = sorted(served, key=lambda form: (form == "safetensors", sizes.get(form, 0)))
    return ranked[0] if ranked else None


def has_accelerator() -> bool:
    """Whether the driver of a GPU is there."""
    return any(Path(device).exists() for device in _ACCELERATORS)


def _nothing(folder: Path, chosen: str | None, runtime: str | None, shipped: list[str], served: list[str]) -> str:
    what = f" as {chosen}" if chosen else ""
    by = f" by {runtime}" if runtime else ""
    way_out = "`foundry serve` runs GGUF files and safetensors: ask the job for one"
    if served:
        way_out = f"give --format {served[0]}"
    return f"{folder} has nothing to serve{what}{by}; it holds {', '.join(sorted(shipped)) or 'no model'}; {way_out}"
