"""`foundry plan --data`: shapes measured on a tiny genuine model."""

import json
import subprocess
from pathlib import Path

import pytest

from tests import tiny
from tests.integration.cli.upped import command

pytestmark = pytest.mark.integration


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    tiny.write_texts(tmp_path / "text.jsonl", 100)
    return tiny.save(tmp_path / "teacher", tiny.new_model(hidden=64, ffn=128, layers=3))


def _plan(teacher: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ("plan", "--teacher", str(teacher), "--max-params", "85e3", "--data", "text.jsonl", "--top", "3")
    return subprocess.run(command(*arguments, *more), cwd=teacher.parent, capture_output=True, text=True, timeout=120)


def test_plan_ranks_by_the_measured_kl_when_it_is_given_weights_and_data(teacher: Path) -> None:
    result = _plan(teacher, "--json")
    plan = json.loads(result.stdout)
    scores = [candidate["held_out_kl"] for candidate in plan["candidates"]]
    assert len(scores) == 3 and scores == sorted(scores) and scores[0] > 0
    assert f"KL {scores[1]:.4f} against {scores[0]:.4f}" in plan["candidates"][1]["why"]
    assert all(candidate["budget_ratio"] <= 1 for candidate in plan["candidates"])
    assert result.stderr.count("nats per token right after the cut") == 3  # each is said as it is found


def test_plan_names_the_way_out_when_there_is_nothing_to_measure(teacher: Path) -> None:
    (teacher / "model.safetensors").unlink()
    result = _plan(teacher)
    assert (
        result.returncode != 0 and "has no weights to measure" in result.stderr and "leave --data out" in result.stderr
    )
