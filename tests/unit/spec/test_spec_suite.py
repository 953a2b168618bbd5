"""Suites and published tables."""

import pytest

from foundry.errors import UnknownSuite, UnknownTask
from foundry.spec.suite import find_suite, only, published, suites, with_tasks

SHOTS = {
    "winogrande": 5, "arc_challenge": 25, "mmlu": 5, "hellaswag": 10, "gsm8k": 5, "truthfulqa_mc2": 0, "xlsum_en": 3,
    "mbpp": 0, "humaneval": 0,
}  # fmt: skip


def test_minitron_has_the_nine_tasks_and_shots_of_the_published_table() -> None:
    suite = find_suite("minitron")
    assert {task.task: task.shots for task in suite.tasks} == SHOTS
    assert [task.task for task in suite.tasks if task.runs_code] == ["mbpp", "humaneval"]
    assert next(task.share for task in suite.tasks if task.task == "xlsum_en") == 0.2


def test_published_rows_have_every_task_of_their_suite() -> None:
    table = published("minitron")
    assert table is not None
    assert [row.model for row in table.rows] == [
        "Mistral NeMo 12B", "Mistral-NeMo-Minitron 8B", "Llama 3.1 8B", "Gemma 7B",
    ]  # fmt: skip
    assert all(set(row.scores) == set(SHOTS) for row in table.rows)
    assert table.rows[1].scores["mmlu"] == 69.51 and table.rows[0].scores["humaneval"] == 23.78
    assert published("quick") is None


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownSuite, match="did you mean minitron"):
        find_suite("minitorn")
    with pytest.raises(UnknownTask, match="did you mean hellaswag"):
        only(find_suite("minitron"), ["helaswag"])


def test_named_tasks_take_the_settings_of_whatever_suite_has_them_all() -> None:
    quick = find_suite("quick")
    assert (with_tasks(quick, ["hellaswag"]) or quick).tasks[0].shots == 0
    found = with_tasks(quick, ["mbpp", "humaneval"])
    assert found is not None and found.name == "minitron" and all(task.runs_code for task in found.tasks)
    assert with_tasks(quick, ["mbpp", "wikitext"]) is None


def test_only_keeps_the_named_tasks() -> None:
    assert [task.task for task in only(suites()["minitron"], ["mmlu", "gsm8k"]).tasks] == ["mmlu", "gsm8k"]
