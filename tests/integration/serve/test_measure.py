"""`foundry measure` on a real variant in its real runtime."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from api.app import create_app
from foundry.engine.export.manifest import NAME, read_manifest
from foundry.engine.export.measure import held_out_texts, shipped_formats
from foundry.engine.export.signature import SigningKey
from foundry.engine.workspace import write_json
from foundry.errors import InvalidData, UnknownFormat
from foundry.store.records import NewVariant
from tests.serving import Serving

pytestmark = pytest.mark.integration
MEASURE = (sys.executable, "-m", "foundry.cli", "measure")


@pytest.fixture
def folder(variant: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(variant, tmp_path / "variant"))


def measured(
    folder: Path, *options: str, status: int = 0, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    command = [*MEASURE, str(folder), "--threads", "1", "--json", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})}
    )
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


@contextmanager
def listening(serving: Serving) -> Iterator[str]:
    """The API over HTTP, with the variant store of `serving` behind it."""
    server = make_server("127.0.0.1", 0, create_app(serving.settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_measure_uploads_to_the_variant_whose_files_it_measured(folder: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path / "service")
    serving.folder.mkdir()
    claim = serving.memory.jobs.claim("tester", serving.submit().id)
    assert claim is not None
    shipped = serving.keep(NAME, (folder / NAME).read_bytes())
    manifest = read_manifest(folder)
    new = NewVariant(manifest=manifest, manifest_sha256=shipped.sha256, files=(shipped,))
    serving.memory.jobs.succeed(claim, [new])
    (variant,) = serving.memory.variants.list(serving.project).data
    with listening(serving) as url:
        environment = {"FOUNDRY_URL": url, "FOUNDRY_KEY": serving.key}
        found = measured(folder, "--upload", "--device", "mine", "--no-save", environment=environment)
        (kept,) = serving.memory.measurements.list(serving.project, variant.id).data
        assert found["uploaded"] == [kept.id] and kept.device == "mine" and kept.fits_budget is True
        assert kept.metrics.model_dump(mode="json", exclude_none=True, exclude_defaults=True) == {
            key: value for key, value in found["measured"][0].items() if value != {}
        }
        write_json(folder / NAME, manifest.model_copy(update={"fits_budget": False}).model_dump(mode="json"))
        SigningKey.read_or_make(folder.parent / "signing-key.pem").sign(folder / NAME)
        command = [*MEASURE, str(folder), "--threads", "1", "--upload", "--no-save"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode != 0 and "the service has no variant with the manifest of" in done.stderr
    serving.memory.database.close()
