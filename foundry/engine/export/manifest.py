"""`manifest.json`: every file of a variant with its digest, where it comes from, and what was measured.

This file needs no torch: whoever has a variant's folder can check it.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from foundry.engine.export.signature import check_signature, read_document
from foundry.engine.workspace import sha256_of
from foundry.errors import ArtifactDamaged, InvalidSpec
from foundry.spec.adapter import ADAPTER_FOLDER, ADAPTER_GGUF, adapter_file
from foundry.spec.record import parse
from foundry.spec.variant import Artifact, VariantManifest

NAME = "manifest.json"
MEASURED = "measured.jsonl"
"""Where `foundry measure` notes what a variant does on one more machine; nobody vouches for it."""
SAFETENSORS_FOLDER = "safetensors"
_ONNX_FOLDER = "onnx-"
_WEIGHT_FILES = ("*.gguf", "*/*.safetensors", "*/*.onnx", "*/*.onnx.data")
_RECORDED = (
    "foundry", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "gguf", "xllamacpp",
    "onnxruntime", "onnxruntime-genai",
)  # fmt: skip


def gguf_name(target: str, quantisation: str) -> str:
    """The file name of a GGUF in a variant's folder."""
    return f"{target}-{quantisation}.gguf"


def onnx_folder(quantisation: str) -> str:
    """The name of the folder of an ONNX model in a variant's folder."""
    return _ONNX_FOLDER + quantisation


def artifacts_in(folder: Path) -> tuple[Artifact, ...]:
    """Every file but the manifest itself and later measurements, by path."""
    apart = {folder / NAME, folder / MEASURED}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in apart)
    return tuple(
        Artifact(
            path=path.relative_to(folder).as_posix(),
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
            format=_format_of(path.relative_to(folder)),
        )
        for path in paths
    )


def _format_of(path: Path) -> str | None:
    if path.parts[0] == SAFETENSORS_FOLDER:
        return "safetensors"
    if path.parts[0].startswith(_ONNX_FOLDER) and len(path.parts) > 1:
        return f"onnx:{path.parts[0].removeprefix(_ONNX_FOLDER)}"
    is_model = path.suffix == ".gguf" and len(path.parts) == 1  # adapters and importance matrices lie deeper
    return f"gguf:{path.stem.rpartition('-')[2]}" if is_model else None


def adapter_of(manifest: VariantManifest, container: str) -> str | None:
    """What a runtime of this container adds to the weights: a file of the folder, or the folder for PEFT."""
    found = {"gguf": ADAPTER_GGUF, "safetensors": f"{ADAPTER_FOLDER}/adapter_config.json"}.get(container)
    if found is None or all(file.path != found for file in manifest.files):
        return None
    return found if container == "gguf" else ADAPTER_FOLDER


def format_bytes(folder: Path, form: str) -> int | None:
    """Bytes of a format's weight files, None when the folder does not hold it."""
    paths = (path.relative_to(folder) for pattern in _WEIGHT_FILES for path in folder.glob(pattern))
    sizes = [(folder / path).stat().st_size for path in paths if _format_of(path) == form]
    return sum(sizes) if sizes else None


def adapter_bytes_in(folder: Path, form: str) -> int:
    """Bytes of the adapter file that the runtime of a format adds to the weights; 0 without one."""
    name = adapter_file(form)
    path = None if name is None else folder / name
    return path.stat().st_size if path is not None and path.is_file() else 0


def read_manifest(folder: Path) -> VariantManifest:
    """The manifest of a variant's folder. Raises `ArtifactDamaged` when there is none or it cannot be read."""
    try:
        return parse(VariantManifest, read_document(folder / NAME))
    except InvalidSpec as error:
        raise ArtifactDamaged(f"{folder / NAME} is not a manifest: {error}") from error


def check_folder(folder: Path) -> VariantManifest:
    """Compute every digest again and compare; needs no network. Raises `ArtifactDamaged` with all that is wrong."""
    manifest = read_manifest(folder)
    found = {artifact.path: artifact for artifact in artifacts_in(folder)}
    named = {artifact.path: artifact for artifact in manifest.files}
    problems = [f"{path} is missing" for path in named.keys() - found.keys()]
    problems += [
        f"{path.relative_to(folder).as_posix()} is a link; a variant holds its own bytes"
        for path in folder.rglob("*")
        if path.is_symlink()
    ]
    problems += [f"{path} is not in the manifest" for path in found.keys() - named.keys()]
    problems += [
        f"{path} has other bytes than the manifest says ({found[path].bytes:,} of {named[path].bytes:,} bytes)"
        for path in named.keys() & found.keys()
        if (found[path].bytes, found[path].sha256) != (named[path].bytes, named[path].sha256)
    ]
    if problems:
        raise ArtifactDamaged(f"{folder}: {'; '.join(sorted(problems))}. Download or export the variant again")
    return manifest


def verify_folder(
    folder: Path, trusted: str | None = None, *, may_be_unsigned: bool = False
) -> tuple[VariantManifest, str | None]:
    """Check digests and signature, offline; returns the manifest and the public key that signed it.

    `trusted` is the only key that will do. Raises `ArtifactDamaged` with all that is wrong, and `NotTrusted`.
    """
    if may_be_unsigned and trusted is None and read_manifest(folder).signature is None:
        return check_folder(folder), None
    signed_by = check_signature(folder / NAME, trusted)
    return check_folder(folder), signed_by


def versions() -> dict[str, str]:
    """The libraries that made the variant."""
    found = {}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
