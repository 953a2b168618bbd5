"""Files as the authors of benchmarks publish them, turned into the fields that the harness's tasks expect."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from foundry.engine.evaluate.suites.local import find_local, hub_folder, split_overrides
from foundry.engine.evaluate.suites.scoring import pass_at_1, rouge_l
from foundry.engine.evaluate.suites.tasks import prepare
from foundry.errors import InvalidData
from foundry.spec.suite import find_suite, only

pytestmark = pytest.mark.filterwarnings("ignore:::(lm_eval|datasets|evaluate|multiprocess|dill).*")
_WINO = {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}
_SWAG = {"activity_label": "A", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": 1}
_ARC = {"query": "Question: why?\nAnswer:", "choices": ["a", "b"], "gold": 1}
_GSM = {"question": "q", "answer": "#### 1"}
_XLSUM = {"text": "long", "summary": "short"}
_MBPP = {"task_id": 11, "text": "do", "code": "x", "test_list": ["assert 1"] * 3, "challenge_test_list": []}


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def request(doc: Mapping[str, Any]) -> str:
    """As OLMo's request files have it: one line for each answer that is offered."""
    return lines({"doc_id": 0, "idx": 0, "doc": doc}, {"doc_id": 0, "idx": 1, "doc": doc})


@pytest.mark.parametrize(
    ("task", "files", "splits", "first"),
    [
        ("winogrande", {"winogrande_1.1/dev.jsonl": lines(_WINO), "winogrande_1.1/train_xl.jsonl": lines(_WINO, _WINO)},
         {"train": 2, "validation": 1}, _WINO),
        ("winogrande", {"winogrande_rc_requests.jsonl": request(_WINO)}, {"validation": 1}, _WINO),
        ("arc_challenge",
         {"arc_challenge_requests.jsonl": request(_ARC)},
         {"validation": 1},
         {"question": "why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}),
        ("hellaswag", {"hellaswag_val.jsonl": lines(_SWAG)}, {"validation": 1}, _SWAG),
        ("hellaswag", {"hellaswag_requests.jsonl": request({"query": "q", "choices": ["a"], "gold": 0})},
         {"validation": 1}, {"query": "q", "choices": ["a"], "label": "0"}),
        ("gsm8k", {"gsm8k/test.jsonl": lines(_GSM), "gsm8k/train.jsonl": lines({}, {})},
         {"train": 2, "test": 1}, _GSM),
        ("truthfulqa_mc2", {"mc_task.json": json.dumps([{"question": "q", "mc2_targets": {"a": 1, "b": 0}}])},
         {"validation": 1}, {"question": "q", "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]}}),
        ("truthfulqa_mc2", {"TruthfulQA.csv": 'question,Correct Answers,Incorrect Answers\nq,"a; b.",c\n'},
         {"validation": 1}, {"question": "q", "mc2_targets": {"choices": ["a.", "b.", "c."], "labels": [1, 1, 0]}}),
        ("xlsum_en", {"english_test.jsonl": lines(_XLSUM), "english_train.jsonl": lines(_XLSUM)},
         {"train": 1, "test": 1}, _XLSUM),
        ("mbpp", {"mbpp.jsonl": lines(_MBPP | {"task_id": 2}, _MBPP)}, {"test": 1},
         {key: _MBPP[key] for key in ("task_id", "text", "code", "test_list")}),
    ],
)  # fmt: skip
def test_reader_gives_the_fields_of_the_hub(
    tmp_path: Path, task: str, files: dict[str, str], splits: dict[str, int], first: dict[str, Any]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = find_local(task, tmp_path)
    assert found is not None
    assert {name: len(rows) for name, rows in found.splits.items()} == splits
    assert list(found.splits.values())[-1][0] == first


def test_nothing_is_found_in_an_empty_folder_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert find_local("gsm8k", tmp_path) is None and find_local("mmlu_anatomy", tmp_path) is None
    (tmp_path / "mbpp.jsonl").write_text("[")
    with pytest.raises(InvalidData, match="mbpp"):
        find_local("mbpp", tmp_path)


def test_examples_come_from_training_and_from_the_questions_only_when_there_is_nothing_else() -> None:
    config = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
    overrides, note = split_overrides(["train", "validation", "test"], config)
    assert (overrides["test_split"], overrides["fewshot_split"], note) == ("test", "train", "")
    overrides, note = split_overrides(["validation"], config)
    assert overrides["test_split"] == overrides["fewshot_split"] == "validation" and "questions themselves" in note


def test_a_copy_of_the_hub_is_taken_before_files_of_authors(tmp_path: Path) -> None:
    assert hub_folder("openai/gsm8k", tmp_path) is None
    (tmp_path / "openai" / "gsm8k" / "main").mkdir(parents=True)
    (task,) = only(find_suite("minitron"), ["gsm8k"]).tasks
    (config,) = prepare(task, tmp_path).configs
    assert config["dataset_path"] == str(tmp_path / "openai" / "gsm8k") and "custom_dataset" not in config


def test_tasks_that_run_code_or_are_ours_compute_with_our_metrics(tmp_path: Path) -> None:
    (tmp_path / "mbpp.jsonl").write_text(lines(_MBPP))
    (tmp_path / "HumanEval.jsonl").write_text(lines({"prompt": "def f():", "test": "t", "entry_point": "f"}))
    (tmp_path / "english_test.jsonl").write_text(lines(_XLSUM))
    tasks = only(find_suite("minitron"), ["xlsum_en", "mbpp", "humaneval"]).tasks
    configs = [prepare(task, tmp_path).configs[0] for task in tasks]
    assert [config["metric_list"][0]["metric"] for config in configs] == [rouge_l, pass_at_1, pass_at_1]
    assert [config["num_fewshot"] for config in configs] == [3, 0, 0]
    assert len(configs[0]["custom_dataset"]()["test"]) == 1
