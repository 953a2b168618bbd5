"""What `foundry evaluate` and `foundry report` refuse. Whole suites: tests/unit/suites."""

import json
from pathlib import Path

from foundry.cli.evaluating import published_table, results_table
from foundry.spec.suite import SuiteResult, TaskResult, find_suite
from tests.unit.cli.conftest import Command


def test_evaluate_refuses_unknown_suites_and_folders(foundry: Command, tmp_path: Path) -> None:
    result = foundry("evaluate", tmp_path, "--suite", "minitorn")
    assert result.code == 1 and "did you mean minitron" in result.err
    result = foundry("evaluate", tmp_path, "--data-dir", tmp_path / "gone")
    assert result.code == 1 and "--data-dir" in result.err and "gone" in result.err


def test_report_refuses_a_folder_that_is_no_run(foundry: Command, tmp_path: Path) -> None:
    result = foundry("report", tmp_path)
    assert result.code == 1 and "no spec.json" in result.err


def test_a_row_stands_beside_the_published_ones_with_the_same_columns() -> None:
    suite = find_suite("minitron")
    tasks = tuple(
        TaskResult(task=t.task, title=t.title, status="done", value=0.5, shots=t.shots, examples=4, examples_of=9)
        for t in suite.tasks
    )
    document = {
        "suite": "minitron", "model": "mine", "limit": 4, "seed": 1, "harness": "lm-eval 0", "hardware": "a CPU",
        "finished_at": "2026-01-01T00:00:00Z", "tasks": [json.loads(task.model_dump_json()) for task in tasks],
    }  # fmt: skip
    result = SuiteResult.model_validate(document)
    beside = published_table(result)
    assert beside is not None and len(beside.columns) == 10 and beside.row_count == 6
    assert list(beside.columns[0].cells)[-2:][0].__str__() == "mine"
    assert list(results_table(result).columns[-2].cells) == ["50.00"] * 9
