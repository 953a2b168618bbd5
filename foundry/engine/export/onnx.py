"""Writes a checkpoint for ONNX Runtime, by the model builder of onnxruntime-genai, in a process of its own.

Why this exporter and no other: docs/decisions/0011-onnx.md. A float16 file is not offered: on a processor the runtime
does not get past its second token.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from foundry.engine.workspace import sync, write_json
from foundry.errors import ExportFailed, MissingExtra
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.family import families

_BUILDER = "foundry.engine.export.builder"
_LAST_LINES = 3
_NEEDED = ("onnxruntime_genai", "onnxruntime", "onnx_ir")


def require_onnx() -> None:
    """Raise `MissingExtra` when what writes and opens ONNX is not installed."""
    for module in _NEEDED:
        if find_spec(module) is None:
            raise MissingExtra(module, "onnx")


def write_onnx(master: Checkpoint, folder: Path, *, quantisation: str) -> None:
    """Fill `folder` from a plain Hugging Face folder. Raises `ExportFailed` with the builder's last words."""
    require_onnx()
    with tempfile.TemporaryDirectory() as scratch:
        model, cache = Path(scratch) / "model", Path(scratch) / "cache"
        _lay_out(master, model)
        command = [sys.executable, "-m", _BUILDER, str(model), str(folder.absolute()), quantisation, str(cache)]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode != 0 or not (folder / "model.onnx").is_file():
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        words = " | ".join(lines[-_LAST_LINES:]).replace(f"{scratch}/model", master.family.name)
        raise ExportFailed(f"the builder of onnxruntime-genai refused it: {words}")
    for path in folder.iterdir():
        sync(path)


def _lay_out(master: Checkpoint, folder: Path) -> None:
    """The folder as the builder shall see it: under the class of another family where that computes the same."""
    folder.mkdir()
    for path in master.folder.iterdir():
        (folder / path.name).symlink_to(path.absolute())
    if carrier := master.family.onnx_carrier:
        names = {"model_type": families()[carrier.family].model_types[0], "architectures": [carrier.architecture]}
        (folder / "config.json").unlink()
        write_json(folder / "config.json", {**master.config, **names, **dict.fromkeys(carrier.null)})
