"""Suites through the real harness on a tiny model: the same numbers as the harness alone, resumed, refused, missing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from foundry.engine.context import RunContext, Stopped
from foundry.engine.evaluate.alone import Request, evaluate_alone, is_evaluation, write_request
from foundry.engine.evaluate.benchmarks import run_benchmarks
from foundry.engine.evaluate.locate import find_model
from foundry.engine.evaluate.suites.model import evaluate_model
from foundry.engine.evaluate.suites.run import Conditions
from foundry.engine.evaluate.suites.tasks import custom_suite
from foundry.engine.report.gather import gather
from foundry.engine.report.scores import benchmark_table
from foundry.engine.workspace import Inputs, Workspace, read_json
from foundry.errors import DamagedCheckpoint, TeacherNotFound, UnknownTask
from foundry.spec.evaluation import EvaluationResult, EvaluationSpec
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from foundry.spec.suite import SuiteResult, find_suite, only
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:::(lm_eval|datasets|evaluate|multiprocess|dill).*")
_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 2.5
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), tiny.new_model(seed=7))


@pytest.fixture
def events() -> list[RunEvent]:
    return []


@pytest.fixture
def context(events: list[RunEvent]) -> RunContext:
    return RunContext(emit=events.append, device=torch.device("cpu"), dtype=torch.float32, seed=0)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks of the user's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, count in (("colours", 12), ("animals", 7)):
        rows = [
            {"question": tiny.sentence(n, 5), "choices": [" the cat", " a red hill", " blue"], "answer": n % 3}
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = _TASK.format(name=name, data=folder / f"{name}.jsonl", cache=tmp_path / "cache")
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """Files as the authors of ARC, MMLU and HumanEval publish them, with a few made-up questions."""
    folder = tmp_path / "benchmarks"
    (folder / "ARC-Challenge").mkdir(parents=True)
    for split, count in (("Train", 6), ("Test", 5)):
        rows = [
            {
                "id": f"{split}{n}", "answerKey": "AB"[n % 2],
                "question": {
                    "stem": tiny.sentence(n, 4),
                    "choices": [{"text": "the cat", "label": "A"}, {"text": "red", "label": "B"}],
                },
            }
            for n in range(count)
        ]  # fmt: skip
        path = folder / "ARC-Challenge" / f"ARC-Challenge-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for subject, count in (("anatomy", 4), ("virology", 6)):
        for split, size in (("dev", 5), ("test", count)):
            rows = "".join(f'"{tiny.sentence(n, 4)}",the cat,a dog,red,blue,{"ABCD"[n % 4]}\n' for n in range(size))
            (folder / f"{subject}_{split}.csv").write_text(rows)
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "def check(f): assert f() == 1",
    }
    (folder / "HumanEval.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def by_task(result: SuiteResult) -> dict[str, float | None]:
    return {task.task: task.value for task in result.tasks}


def test_numbers_of_own_tasks_equal_those_of_the_harness_alone(
    model: Path, tasks: Path, context: RunContext, tmp_path: Path
) -> None:
    suite, manager = custom_suite(tasks, ())
    found = evaluate_model(model, suite, tmp_path / "out", Conditions(limit=9), context, manager=manager)
    alone = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), device="cpu", dtype="float32"), tasks=["animals", "colours"], limit=9,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), bootstrap_iters=10,
    )  # fmt: skip
    assert alone is not None
    for task in found.tasks:
        row = alone["results"][task.task]
        assert task.value == row["acc,none"]
        assert task.standard_error == pytest.approx(row["acc_stderr,none"])
        assert (task.version, task.shots) == ("2.5", 0)
    assert {task.task: (task.examples, task.examples_of) for task in found.tasks} == {
        "animals": (7, 7), "colours": (9, 12),
    }  # fmt: skip


def test_published_tasks_read_local_files_and_equal_the_harness_on_the_same_questions(
    model: Path, benchmarks: Path, context: RunContext, tmp_path: Path
) -> None:
    suite = only(find_suite("minitron"), ["arc_challenge", "mmlu"])
    tasks = tuple(task.model_copy(update={"shots": 2}) for task in suite.tasks)
    conditions = Conditions(data_dir=benchmarks)
    found = evaluate_model(model, suite.model_copy(update={"tasks": tasks}), tmp_path / "out", conditions, context)
    arc, mmlu = found.tasks
    assert (arc.metric, arc.examples, arc.status, arc.note) == ("acc_norm", 5, "done", "")
    assert (mmlu.examples, mmlu.note) == (10, "2 of 57 subjects, the others have no files")
    alone = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), device="cpu", dtype="float32"), tasks=_hub_like(benchmarks, tmp_path),
        num_fewshot=2, bootstrap_iters=10, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    assert alone is not None
    assert mmlu.value == pytest.approx(
        sum(n * alone["results"][f"mmlu_{s}"]["acc,none"] for s, n in (("anatomy", 4), ("virology", 6))) / 10
    )
    assert 0 < (mmlu.standard_error or 0) < 0.5


def _hub_like(benchmarks: Path, tmp_path: Path) -> list[dict[str, object]]:
    """The harness's own MMLU prompts on JSON files with the hub's fields, written here apart from the readers."""
    import csv

    found: list[dict[str, object]] = []
    for subject in ("anatomy", "virology"):
        files = {}
        for split in ("dev", "test"):
            with (benchmarks / f"{subject}_{split}.csv").open() as file:
                rows = [{"question": q, "choices": c, "answer": "ABCD".index(a)} for q, *c, a in csv.reader(file)]
            path = tmp_path / f"{subject}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path)
        found.append(
            {
                "task": f"mmlu_{subject}", "dataset_path": "json", "output_type": "multiple_choice",
                "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "cache")},
                "test_split": "test", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"},
                "description": f"The following are multiple choice questions (with answers) about {subject}.\n\n",
                "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
                "D. {{choices[3]}}\nAnswer:",
                "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
            }
        )  # fmt: skip
    return found


def test_a_task_without_data_says_what_is_expected_and_the_others_run(
    model: Path, benchmarks: Path, context: RunContext, tmp_path: Path
) -> None:
    suite = only(find_suite("minitron"), ["gsm8k", "arc_challenge", "humaneval"])
    found = evaluate_model(model, suite, tmp_path / "out", Conditions(data_dir=benchmarks, limit=2), context)
    arc, gsm8k, humaneval = (task for task in found.tasks)
    assert gsm8k.status == "missing" and "gsm8k_test.jsonl" in gsm8k.note and str(benchmarks) in gsm8k.note
    assert humaneval.status == "refused" and "--allow-code" in humaneval.note
    assert arc.status == "failed", "25 examples cannot be drawn from the six there are"


def test_finished_tasks_stand_and_the_others_are_run_when_it_starts_again(
    model: Path, tasks: Path, context: RunContext, events: list[RunEvent], tmp_path: Path
) -> None:
    suite, manager = custom_suite(tasks, ())

    def run(limit: int, should_stop: Callable[[], bool] = lambda: False) -> SuiteResult:
        told = RunContext(
            emit=events.append, should_stop=should_stop, device=context.device, dtype=context.dtype, seed=0
        )
        return evaluate_model(model, suite, tmp_path / "out", Conditions(limit=limit), told, manager=manager)

    with pytest.raises(Stopped):
        run(4, should_stop=lambda: any(event.type == EventType.PROGRESS for event in events))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["animals.json"]
    first = (tmp_path / "out" / "animals.json").stat().st_mtime_ns
    events.clear()
    result = run(4)
    assert (tmp_path / "out" / "animals.json").stat().st_mtime_ns == first
    assert [event.data["task"] for event in events if event.type == EventType.LOG] == ["colours"]
    assert set(by_task(result)) == {"animals", "colours"}
    run(5)
    assert (tmp_path / "out" / "animals.json").stat().st_mtime_ns != first, "another limit is another result"


def test_unknown_tasks_and_models_are_refused_by_name(tasks: Path, context: RunContext, tmp_path: Path) -> None:
    with pytest.raises(UnknownTask, match="did you mean colours"):
        custom_suite(tasks, ("colour",))
    with pytest.raises(TeacherNotFound, match="nowhere"):
        find_model(tmp_path / "nowhere")
    broken = tiny.save(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"none")
    with pytest.raises(DamagedCheckpoint):
        evaluate_model(broken, find_suite("quick"), tmp_path / "out", Conditions(), context)


def test_a_job_sets_its_students_beside_the_teacher_and_the_published_models(
    model: Path, benchmarks: Path, context: RunContext, tmp_path: Path
) -> None:
    spec = parse(
        JobSpec,
        {
            "teacher": str(model), "data": "unread", "targets": [{"name": "kiosk", "max_params": 30_000}],
            "evaluate": {"suite": "minitron", "limit": 3},
        },
    )  # fmt: skip
    workspace = Workspace.create(tmp_path / "job", spec, Inputs(teacher=str(model), data="unread", data_sha256="-"))
    tiny.save(workspace.stage("prune", "kiosk") / "model", tiny.new_model(ffn=32))
    run_benchmarks(spec, workspace, replace(context, benchmarks=benchmarks))
    report = gather(workspace)
    assert [result.model for result in report.benchmarks] == ["teacher", "kiosk"]
    table = benchmark_table(report)
    assert table is not None and "developer.nvidia.com" in table.source
    assert [row.model for row in table.rows][-3:] == ["Gemma 7B", "teacher", "kiosk"]
    place = next(place for place, title in enumerate(table.titles) if title.startswith("MMLU"))
    assert table.rows[1].cells[place].score == "69.51"
    assert "±" in table.rows[-1].cells[place].under
    assert any("gsm8k_test.jsonl" in note for note in table.notes)


def test_an_evaluation_by_itself_goes_on_behind_its_finished_tasks(
    model: Path, benchmarks: Path, context: RunContext, events: list[RunEvent], tmp_path: Path
) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    spec = EvaluationSpec(model="mdl_1", tasks=("mmlu", "humaneval"))
    write_request(folder, Request(spec=spec, model=str(model), name="mine"))
    assert is_evaluation(folder)

    def told() -> list[str]:
        return [event.data["task"] for event in events if event.type is EventType.METRICS]

    stopping = replace(context, benchmarks=benchmarks, should_stop=lambda: bool(told()))
    with pytest.raises(Stopped):
        evaluate_alone(folder, stopping)
    assert told() == ["mmlu"] and not (folder / "result.json").exists()
    evaluate_alone(folder, replace(context, benchmarks=benchmarks))
    assert told() == ["mmlu", "humaneval"]
    found = parse(EvaluationResult, read_json(folder / "result.json"))
    assert found.benchmarks is not None and found.benchmarks.model == "mine"
    assert [task.status for task in found.benchmarks.tasks] == ["done", "refused"]
    [*_, last] = [event.data["result"] for event in events if event.type is EventType.METRICS]
    assert parse(EvaluationResult, last).benchmarks.tasks == found.benchmarks.tasks
