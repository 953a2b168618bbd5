"""What is meant by MODEL: a folder, a hub id, or a variant."""

from pathlib import Path
from typing import NamedTuple

from foundry.engine.export.manifest import NAME as MANIFEST
from foundry.engine.export.manifest import SAFETENSORS_FOLDER, read_manifest
from foundry.engine.models import local_folder
from foundry.errors import TeacherNotFound, UnknownFormat


class GgufFile(NamedTuple):
    """One file of a variant, and the folder with the tokenizer that it was made with."""

    path: Path
    tokenizer: Path
    name: str


def find_gguf(model: str | Path, form: str) -> GgufFile:
    """A variant's file of this format. Raises `TeacherNotFound` for what is no variant, and `UnknownFormat`."""
    given = Path(model)
    folder, name = find_model(model)
    if not (given / MANIFEST).is_file():
        raise TeacherNotFound(
            f"{model} is no variant's folder; only that holds {form}. Without a format the model itself is measured",
            pointer="/format",
        )
    files = {file.format: file.path for file in read_manifest(given).files if file.format}
    if form not in files:
        raise UnknownFormat(f"the variant {name} has no {form}; it has {', '.join(sorted(files))}", pointer="/format")
    return GgufFile(given / files[form], folder, f"{name}, {form}")


def find_model(model: str | Path) -> tuple[Path, str]:
    """The folder that transformers opens, and what to call the model. Raises `TeacherNotFound`."""
    given = Path(model)
    if (given / MANIFEST).is_file():
        manifest = read_manifest(given)
        folder = given / SAFETENSORS_FOLDER
        if not folder.is_dir():
            raise TeacherNotFound(
                f"the variant {given} holds no {SAFETENSORS_FOLDER}/; export it with the format safetensors",
                pointer="/model",
            )
        return folder, f"{Path(manifest.spec.teacher.partition('@')[0]).name} for {manifest.target}"
    folder = local_folder(model)
    return folder, str(model) if not given.is_dir() else given.resolve().name
