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

from foundry.engine.workspace import sync
from foundry.errors import ExportFailed, MissingExtra

_BUILDER = "onnxruntime_genai.models.builder"
_LAST_LINES = 3
_NEEDED = ("onnxruntime_genai", "onnxruntime", "onnx_ir")


def require_onnx() -> None:
    """Raise `MissingExtra` when what writes and opens ONNX is not installed."""
    for module in _NEEDED:
        if find_spec(module) is None:
            raise MissingExtra(module, "onnx")


def write_onnx(master: Path, folder: Path, *, quantisation: str) -> None:
    """Fill `folder` from a plain Hugging Face folder. Raises `ExportFailed` with the builder's last words."""
    require_onnx()
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", _BUILDER, "-m", str(master), "-o", str(folder), "-p", quantisation, "-e", "cpu",
            "-c", scratch,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, cwd=scratch)
    if done.returncode != 0 or not (folder / "model.onnx").is_file():
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise ExportFailed(f"the builder of onnxruntime-genai refused it: {' | '.join(lines[-_LAST_LINES:])}")
    for path in folder.iterdir():
        sync(path)
