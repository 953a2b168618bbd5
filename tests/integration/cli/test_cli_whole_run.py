"""A whole local run on a tiny genuine model, interrupted and started again."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from foundry.engine.export.manifest import check_folder
from tests import tiny
from tests.integration.cli.upped import command, wait_for

pytestmark = pytest.mark.integration


def test_run_stops_with_a_checkpoint_on_ctrl_c_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "home"))  # its key signs
    tiny.save(tmp_path / "teacher")
    tiny.write_texts(tmp_path / "text.jsonl", 400)
    spec = {
        "teacher": "./teacher",
        "data": "./text.jsonl",
        "targets": [{"name": "kiosk", "max_params": 30_000}],
        "prune": {"calibration_tokens": 2048, "candidates": 1},
        "evaluate": {"tokens": 1024},
        "distill": {"tokens": 6000, "checkpoint_steps": 2},
        "formats": ["safetensors"],
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    again = command("run", "spec.yaml", "-o", "out", "--device", "cpu")

    checkpoints = tmp_path / "out" / "stages" / "distill" / "checkpoints"
    with (tmp_path / "errors").open("wb") as errors:
        run = subprocess.Popen(again, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=errors)
        wait_for(lambda: run.poll() is not None or any(checkpoints.glob("step-*")))
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    assert "Run the same command again to go on" in (tmp_path / "errors").read_text()

    ended = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "resumed at step" in ended.stderr and "Loading weights" not in ended.stderr
    variant = tmp_path / ended.stdout.splitlines()[-1]
    manifest = json.loads((variant / "manifest.json").read_text())
    assert manifest["parameters"] <= 30_000 and (variant / "safetensors" / "model.safetensors").is_file()
    assert {"report.html", "report.md", "report.json"} <= {file.path for file in check_folder(variant).files}
    report = json.loads((variant / "report.json").read_text())
    assert report["status"] == "succeeded" and report["cost"]["attempts"] == 2
    assert [stage["stage"] for stage in report["stages"]] == ["prune", "distill", "evaluate", "export"]
    again = subprocess.run(
        command("report", "out", "-o", "elsewhere"), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert again.stdout.splitlines()[0] == "elsewhere/report.html" and (tmp_path / "elsewhere/report.html").is_file()
    verified = subprocess.run(command("verify", str(variant)), capture_output=True, text=True, timeout=60)
    assert verified.returncode == 0 and "the key of this installation" in verified.stdout, verified.stderr
    assert "distilled" in ended.stdout and "perplexity" in ended.stdout
