"""`foundry measure` on a real variant in its real runtime."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foundry.engine.export.manifest import NAME, read_manifest
from foundry.engine.export.measure import held_out_texts, shipped_formats
from foundry.engine.export.signature import SigningKey
from foundry.engine.workspace import write_json
from foundry.errors import InvalidData, UnknownFormat

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(variant: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(variant, tmp_path / "variant"))


def measured(folder: Path, *options: str, status: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "foundry.cli", "measure", str(folder), "--threads", "1", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_measure_says_what_the_file_does_here_and_notes_it(folder: Path, tmp_path: Path) -> None:
    rows = (
        {"id": str(n), "text": "import os\n\n\ndef main(args):\n    return os.path.join(args)\n"} for n in range(40)
    )
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = measured(folder, "--data", str(text))["measured"]
    assert row["model"] == "gguf:q8_0" and row["file_bytes"] == (folder / "kiosk-q8_0.gguf").stat().st_size
    assert row["file_bytes"] < row["peak_memory_bytes"] < row["file_bytes"] + 120_000_000
    assert row["load_ms"] > 0 and row["prompt_tokens_per_s"] > 0 and row["decode_tokens_per_s"] > 0
    assert 0 < row["held_out_loss"] < 5 and row["tokens"] > 10  # 8.3 is what it knows of nothing
    assert row["hardware"].endswith("1 thread") and row["runtime"].startswith("xllamacpp")
    noted = json.loads((folder / "measured.jsonl").read_text())
    assert noted["measured_at"] and {key: noted[key] for key in row} == row


def test_measure_ends_with_one_when_the_peak_is_over_the_targets_memory(folder: Path) -> None:
    manifest = read_manifest(folder)
    small = manifest.model_copy(update={"budget": manifest.budget.model_copy(update={"memory_bytes": 20_000_000})})
    write_json(folder / NAME, small.model_dump(mode="json"))
    SigningKey.read_or_make(folder.parent / "signing-key.pem").sign(folder / NAME)
    found = measured(folder, "--no-save", status=1)
    assert "its process held" in found["over_budget"][0] and not (folder / "measured.jsonl").exists()


def test_measure_refuses_formats_and_data_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match=r"no gguf:f16 .* it holds gguf:q8_0"):
        shipped_formats(read_manifest(folder), ["gguf:f16"])
    (tmp_path / "one.jsonl").write_text('{"id": "1", "text": "a"}\n')
    with pytest.raises(InvalidData, match="held-out side"):
        held_out_texts(tmp_path / "one.jsonl")
