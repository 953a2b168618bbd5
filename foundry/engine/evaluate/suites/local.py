"""Benchmarks from files on this machine: the hub's own folders, or the files that each benchmark's authors publish.

A reader turns such files into the fields that the harness's task expects, split by split. Under a data directory D the
hub's layout is D/ORG/NAME/ with the repository's files, as `huggingface-cli download --repo-type dataset` leaves it.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import InvalidData

Rows = list[dict[str, Any]]
Splits = dict[str, Rows]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A task's data, and what a reader of the result must know of it."""

    splits: Splits
    note: str = ""
    overrides: Mapping[str, Any] | None = None
    """Settings of the task that these files need otherwise."""


Reader = Callable[[Path], Found | None]


def find_local(task: str, folder: Path) -> Found | None:
    """The data of a task below a folder; None when none of the known files is there. Raises `InvalidData`."""
    reader = READERS.get(task) or (_mmlu(task.removeprefix("mmlu_")) if task.startswith("mmlu_") else None)
    try:
        return reader(folder) if reader else None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidData(
            f"{task}: the files in {folder} cannot be read: {error!r:.300}", pointer="/data_dir"
        ) from error


def expected(task: str) -> str:
    """Which files would be looked for."""
    return EXPECTED.get(task, "SUBJECT_dev.csv and SUBJECT_test.csv, there or in mmlu/" if "mmlu" in task else "")


def hub_folder(dataset: str | None, folder: Path) -> Path | None:
    """A copy of the hub's repository below the folder, which the `datasets` library reads by itself."""
    if dataset is None:
        return None
    places = (folder / dataset, folder / dataset.replace("/", "--"))
    return next((place for place in places if place.is_dir() and any(place.iterdir())), None)


def _first(folder: Path, *patterns: str) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()), None)


def _rows(path: Path | None) -> Rows:
    """JSON Lines, packed or not."""
    if path is None:
        return []
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _splits(**splits: Rows) -> Splits:
    return {name: rows for name, rows in splits.items() if rows}


def _requests(path: Path) -> Iterator[dict[str, Any]]:
    """The examples in a file of requests as AllenAI's OLMo ships them: a line for each answer that is offered."""
    seen: set[int] = set()
    for row in _rows(path):
        if row["doc_id"] not in seen:
            seen.add(row["doc_id"])
            yield row["doc"]


def _winogrande(folder: Path) -> Found | None:
    dev = _first(folder, "winogrande*/dev.jsonl", "winogrande_dev.jsonl", "dev.jsonl")
    if dev:
        train = _first(dev.parent, "train_xl.jsonl", "winogrande_train_xl.jsonl")
        return Found(splits=_splits(train=_rows(train), validation=_rows(dev)))
    if path := _first(folder, "winogrande*requests.jsonl*"):
        return Found(splits=_splits(validation=list(_requests(path))))
    return None


def _arc_challenge(folder: Path) -> Found | None:
    test = _first(folder, "ARC-Challenge/ARC-Challenge-Test.jsonl", "ARC-Challenge-Test.jsonl")
    if test:
        train, dev = (test.with_name(f"ARC-Challenge-{split}.jsonl") for split in ("Train", "Dev"))
        return Found(
            splits=_splits(
                **{
                    name: [_arc_row(row) for row in _rows(path if path.exists() else None)]
                    for name, path in (("train", train), ("validation", dev), ("test", test))
                }
            )
        )
    if path := _first(folder, "arc_challenge*requests.jsonl*"):
        rows = [
            {
                "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
                "choices": {"text": doc["choices"], "label": list("ABCDE"[: len(doc["choices"])])},
                "answerKey": "ABCDE"[doc["gold"]],
            }
            for doc in _requests(path)
        ]
        return Found(splits=_splits(validation=rows), note="the validation questions, as these files hold no others")
    return None


def _arc_row(row: dict[str, Any]) -> dict[str, Any]:
    choices = row["question"]["choices"]
    return {
        "question": row["question"]["stem"], "answerKey": row["answerKey"],
        "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]},
    }  # fmt: skip


def _hellaswag(folder: Path) -> Found | None:
    val = _first(folder, "hellaswag_val.jsonl", "hellaswag/hellaswag_val.jsonl")
    if val:
        train = val.with_name("hellaswag_train.jsonl")
        return Found(splits=_splits(train=_rows(train if train.exists() else None), validation=_rows(val)))
    if path := _first(folder, "hellaswag*requests.jsonl*"):
        rows = [{"query": d["query"], "choices": d["choices"], "label": str(d["gold"])} for d in _requests(path)]
        # These files hold the text as the harness's own process_docs would have made it.
        return Found(splits=_splits(validation=rows), overrides={"process_docs": None})
    return None


def _mmlu(subject: str) -> Reader:
    def read(folder: Path) -> Found | None:
        names = [
            f"{subject}_test.csv",
            f"mmlu/{subject}_test.csv",
            f"test/{subject}_test.csv",
            f"*/test/{subject}_test.csv",
        ]
        if not (test := _first(folder, *names)):
            return None
        flat = test.with_name(f"{subject}_dev.csv")
        dev = flat if flat.exists() else test.parent.with_name("dev") / f"{subject}_dev.csv"
        return Found(splits=_splits(dev=_mmlu_rows(dev), test=_mmlu_rows(test)))

    return read


def _mmlu_rows(path: Path) -> Rows:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in csv.reader(file)]


def _gsm8k(folder: Path) -> Found | None:
    test = _first(folder, "gsm8k_test.jsonl", "gsm8k/test.jsonl", "grade_school_math/data/test.jsonl")
    if test is None:
        return None
    train = test.with_name(test.name.replace("test", "train"))
    return Found(splits=_splits(train=_rows(train if train.exists() else None), test=_rows(test)))


def _truthfulqa(folder: Path) -> Found | None:
    if path := _first(folder, "mc_task.json", "*/mc_task.json"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        return Found(splits={"validation": [_truthful(r["question"], r["mc2_targets"]) for r in rows]})
    if path := _first(folder, "TruthfulQA.csv", "*/TruthfulQA.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        question = "Question" if "Question" in found[0] else "question"
        rows = [
            _truthful(
                row[question],
                dict.fromkeys(_answers(row["Correct Answers"]), 1)
                | dict.fromkeys(_answers(row["Incorrect Answers"]), 0),
            )
            for row in found
        ]
        return Found(splits={"validation": rows}, note="answers as TruthfulQA.csv lists them")
    return None


def _truthful(question: str, targets: Mapping[str, int]) -> dict[str, Any]:
    return {"question": question, "mc2_targets": {"choices": list(targets), "labels": list(targets.values())}}


def _answers(text: str) -> list[str]:
    return [answer.strip().rstrip(".") + "." for answer in text.split(";") if answer.strip()]


def _xlsum(folder: Path) -> Found | None:
    test = _first(folder, "english_test.jsonl", "*/english_test.jsonl")
    if test is None:
        return None
    train, val = test.with_name("english_train.jsonl"), test.with_name("english_val.jsonl")
    return Found(
        splits=_splits(
            train=_rows(train if train.exists() else None), validation=_rows(val if val.exists() else None),
            test=_rows(test),
        )
    )  # fmt: skip


def _mbpp(folder: Path) -> Found | None:
    path = _first(folder, "mbpp.jsonl", "mbpp/mbpp.jsonl")
    if path is None:
        return None
    rows = _rows(path)
    # The authors' division: 11 to 510 are the test.
    test = [row for row in rows if 11 <= row["task_id"] <= 510] or rows
    return Found(splits={"test": [{key: row[key] for key in ("task_id", "text", "code", "test_list")} for row in test]})


def _humaneval(folder: Path) -> Found | None:
    path = _first(folder, "HumanEval.jsonl*", "*/HumanEval.jsonl*")
    return Found(splits={"test": _rows(path)}) if path else None


READERS: Mapping[str, Reader] = {
    "winogrande": _winogrande, "arc_challenge": _arc_challenge, "hellaswag": _hellaswag, "gsm8k": _gsm8k,
    "truthfulqa_mc2": _truthfulqa, "xlsum_en": _xlsum, "mbpp": _mbpp, "humaneval": _humaneval,
}  # fmt: skip
EXPECTED: Mapping[str, str] = {
    "winogrande": "winogrande_1.1/dev.jsonl and train_xl.jsonl, or winogrande*requests.jsonl.gz",
    "arc_challenge": "ARC-Challenge/ARC-Challenge-{Train,Dev,Test}.jsonl, or arc_challenge*requests.jsonl.gz",
    "hellaswag": "hellaswag_train.jsonl and hellaswag_val.jsonl, or hellaswag*requests.jsonl.gz",
    "gsm8k": "gsm8k_train.jsonl and gsm8k_test.jsonl",
    "truthfulqa_mc2": "mc_task.json or TruthfulQA.csv",
    "xlsum_en": "english_train.jsonl and english_test.jsonl",
    "mbpp": "mbpp.jsonl",
    "humaneval": "HumanEval.jsonl or HumanEval.jsonl.gz",
    "mmlu": "mmlu/SUBJECT_dev.csv and mmlu/SUBJECT_test.csv",
}


def split_overrides(splits: Sequence[str], config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Settings that make a task do with the splits that are there, and what a reader must know of it.

    Examples come from the task's own split for them, from training, from validation, or else from the questions
    themselves, which the harness never shows to themselves.
    """
    evaluated = next(
        (config.get(f"{kind}_split") for kind in ("test", "validation") if config.get(f"{kind}_split") in splits), None
    )
    evaluated = evaluated or next(iter(splits))
    asked = (config.get("fewshot_split"), config.get("training_split"), config.get("validation_split"), evaluated)
    examples = next(split for split in asked if split in splits)
    overrides = {
        "training_split": config.get("training_split") if config.get("training_split") in splits else None,
        "validation_split": None, "test_split": evaluated, "fewshot_split": examples,
    }  # fmt: skip
    note = "few-shot examples are drawn from the questions themselves" if examples == evaluated else ""
    return overrides, note
