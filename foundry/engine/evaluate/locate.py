"""What is meant by MODEL: a folder, a hub id, or a variant."""

from pathlib import Path

from foundry.engine.export.manifest import NAME as MANIFEST
from foundry.engine.export.manifest import SAFETENSORS_FOLDER, read_manifest
from foundry.engine.models import local_folder
from foundry.errors import TeacherNotFound


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
