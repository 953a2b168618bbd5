"""The prune stage as the pipeline calls it, on a tiny teacher and a small file of text."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from foundry.engine.context import RunContext, Stopped
from foundry.engine.prune.cutting import Cutting
from foundry.engine.prune.stage import check_room, prune, read_plan
from foundry.engine.prune.texts import Texts
from foundry.engine.workspace import Inputs, Workspace
from foundry.errors import BudgetUnreachable, FoundryError, InvalidData, OutOfMemory, StorageFull
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from foundry.spec.stages import Prune
from tests.cutting import CONTEXT, IDS, opened, packed
from tests.families import save_genuine
from tests.tiny import narrow, new_model, save, write_texts

BIG = {"name": "big", "max_params": 110_000}
SMALL = {"name": "small", "max_params": 85_000}


def _prune(
    folder: Path, targets: list[dict[str, Any]], should_stop: Callable[[], bool] = lambda: False
) -> tuple[Workspace, list[RunEvent]]:
    teacher = folder / "teacher"
    if not teacher.exists():
        save(teacher, new_model(hidden=64, ffn=128, layers=3))
        write_texts(folder / "text.jsonl", documents=100)
    options = {"candidates": 3, "local_epochs": 1, "calibration_tokens": 6000}
    spec = parse(JobSpec, {"teacher": str(teacher), "data": "text.jsonl", "targets": targets, "prune": options})
    inputs = Inputs(teacher=str(teacher), data=str(folder / "text.jsonl"), data_sha256="0" * 64)
    workspace = Workspace.create(folder / "workspace", spec, inputs)
    events: list[RunEvent] = []
    context = RunContext(
        emit=events.append, should_stop=should_stop, device=torch.device("cpu"), dtype=torch.float32, seed=0
    )
    prune(spec, workspace, context)
    return workspace, events


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Pruned for two targets without a break."""
    return _prune(tmp_path_factory.mktemp("whole"), [BIG, SMALL])[0]


def _digest(workspace: Workspace, target: str) -> str:
    path = workspace.root / "stages" / "prune" / target / "model" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_stage_writes_a_plain_checkpoint_within_each_budget(whole: Workspace) -> None:
    for target in (BIG, SMALL):
        plan = read_plan(whole, str(target["name"]))
        student = AutoModelForCausalLM.from_pretrained(whole.student(str(target["name"])))
        assert sum(p.numel() for p in student.parameters()) <= int(target["max_params"])
        assert len(plan.candidates) == 3
        assert plan.shape == plan.candidates[0].shape
        scores = [c.held_out_kl for c in plan.candidates]
        assert scores == sorted(scores)  # type: ignore[type-var]


def test_stage_says_of_which_part_its_progress_is(tmp_path: Path) -> None:
    _, events = _prune(tmp_path, [BIG, SMALL])
    progress = [event.data for event in events if event.type is EventType.PROGRESS]
    parts = ["calibration", "big", "small"]
    assert [data["part"] for data in progress if data["step"] == data["steps"]] == parts
    assert progress == sorted(progress, key=lambda data: (parts.index(data["part"]), data["step"]))


def test_stage_keeps_the_teacher_and_says_so_when_it_fits(tmp_path: Path) -> None:
    workspace, events = _prune(tmp_path, [{"name": "roomy", "max_params": 10_000_000}])
    assert read_plan(workspace, "roomy").cuts_nothing
    assert [e.data["target"] for e in events if e.type is EventType.STAGE_SKIPPED] == ["roomy"]
    assert AutoModelForCausalLM.from_pretrained(workspace.student("roomy")).config.hidden_size == 64


INTERRUPTED = {
    "calibration, in the middle of a layer": "calibration/.stream-0002.bin.partial",
    "candidates": "scores.json",
    "growth, while the first layer learns": "growing-big/goals.bin",
    "growth, in the middle of the teacher's pass": "growing-small/.teacher-0002.bin.partial",
}
"""When, and the file under .scratch that is there then and not before."""


@pytest.mark.parametrize("error", [Stopped, RuntimeError], ids=["stopped", "crashed"])
def test_stage_gives_the_same_bytes_when_interrupted_again_and_again(
    tmp_path: Path, whole: Workspace, error: type[Exception]
) -> None:
    scratch = tmp_path / "workspace" / "stages" / "prune" / ".scratch"
    begun: list[int] = []

    def until(file: Path) -> Callable[[], bool]:
        def should_stop() -> bool:
            if file.exists():
                raise error
            return False

        return should_stop

    for name in INTERRUPTED.values():
        with pytest.raises(error):
            _prune(tmp_path, [BIG, SMALL], until(scratch / name))
        begun.append(len(list((scratch / "calibration").glob("layer-*"))))
    workspace, events = _prune(tmp_path, [BIG, SMALL])
    assert begun == [1, 4, 4, 4]  # three layers and the end, none of them heard twice
    assert len([e for e in events if e.type is EventType.PROGRESS]) < 3 + 3 + 3
    for target in ("big", "small"):
        assert _digest(workspace, target) == _digest(whole, target)
        assert read_plan(workspace, target) == read_plan(whole, target)
    left = {path.name for path in (workspace.root / "stages" / "prune").rglob("*") if path.name.startswith(".")}
    assert not left


def test_a_student_is_grown_anew_when_its_weights_are_gone(tmp_path: Path) -> None:
    cutting = opened(save(tmp_path / "teacher", new_model()), Prune(local_epochs=1))
    plan = cutting.plan(cutting.checkpoint.shape.model_copy(update={"ffn": 40}))
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        errors, kl = cutting.grow(plan, tmp_path / name)
        found.append((errors, kl, (tmp_path / name / "model.safetensors").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_gpu_makes_the_student_that_a_cpu_makes(tmp_path: Path, tied: bool) -> None:
    folder = save(tmp_path / "teacher", new_model(tied=tied))
    weights, kls = [], []
    for device in ("cpu", "cuda"):
        cutting = opened(folder, Prune(local_epochs=1), replace(CONTEXT, device=torch.device(device)))
        shape = cutting.checkpoint.shape.model_copy(update={"hidden": 24, "ffn": 40})
        slicer = cutting.slicer(cutting.plan(shape, ("refit", "rotate", "rescale")))
        weights.append({name: value.cpu() for name, value in slicer.tensors()})
        (tmp_path / device).mkdir()
        kls.append(cutting.grow(cutting.plan(shape), tmp_path / device)[1])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert kls[1] == pytest.approx(kls[0], rel=0.05)


@pytest.mark.parametrize("helps", [True, False])
def test_a_repair_stays_out_where_the_cut_is_better_without_it(tmp_path: Path, helps: bool) -> None:
    """Where the stream spans the kept dimensions and no others, the norms' gain is exact; elsewhere it is a guess."""
    teacher = narrow(new_model(), 24) if helps else new_model()
    cutting = opened(save(tmp_path / "teacher", teacher), Prune(repair=("rotate", "rescale")))
    shape = cutting.checkpoint.shape.model_copy(update={"hidden": 24})
    with_it, without = cutting.score(shape, said=""), cutting.score(shape, said="", repairs=("rotate",))
    assert (with_it < without) is helps
    repairs, score = cutting.settle(shape, with_it, "")
    assert score == min(with_it, without)
    assert cutting.plan(shape, repairs).repair == (("rotate", "rescale") if helps else ("rotate",))


def test_scratch_of_other_text_is_not_read(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", new_model())
    checkpoint, scratch = open_checkpoint(teacher), tmp_path / "scratch"
    first = Cutting(checkpoint, Texts.of(packed(IDS), packed(IDS)), Prune(), scratch, CONTEXT).statistics
    scores = first.layers[0].ffn[0].score_C
    other = packed(IDS.flip(0).roll(3, dims=1))
    again = Cutting(checkpoint, Texts.of(other, other), Prune(), scratch, CONTEXT).statistics
    assert not torch.equal(again.layers[0].ffn[0].score_C, scores)


def test_texts_leave_out_rows_in_which_nothing_counts_and_share_none() -> None:
    ids = torch.arange(40 * 8).view(40, 8)
    pool = packed(ids)
    pool.targets_NS[::2] = False  # prompts as long as a row
    texts = Texts.split(pool, calibration_tokens=10_000)
    assert texts.packed.targets_NS.any(dim=1).all()
    assert texts.calibration_rows == 18 and len(texts.packed) == 20  # a tenth is for the choice
    assert len(texts.packed.ids_NS.unique(dim=0)) == 20


def test_texts_of_a_single_row_serve_for_both() -> None:
    texts = Texts.split(packed(torch.arange(8).view(1, 8)), calibration_tokens=100)
    assert texts.calibration_rows == 1 and len(texts.packed) == 2


def test_stage_does_not_repeat_a_target_that_is_written(whole: Workspace) -> None:
    (whole.root / "stages" / "prune" / "done.json").unlink()
    _, events = _prune(whole.root.parent, [BIG, SMALL])
    assert not [e for e in events if e.type is EventType.PROGRESS]
    assert whole.is_done("prune")


@pytest.mark.parametrize(
    ("sizes", "error", "way_out"),
    [
        ({"hidden": 200_000, "ffn": 800_000}, OutOfMemory, "a machine with more memory"),
        ({"layers": 10_000_000}, StorageFull, "make room"),
    ],
    ids=["memory", "disk"],
)
def test_stage_says_before_the_work_that_there_is_no_room(
    tmp_path: Path, sizes: dict[str, int], error: type[FoundryError], way_out: str
) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "teacher", new_model()))
    larger = replace(checkpoint, shape=checkpoint.shape.model_copy(update=sizes))
    texts = Texts.of(packed(IDS), packed(IDS))
    with pytest.raises(error, match=way_out):
        check_room(larger, texts, tmp_path, CONTEXT)


def test_stage_refuses_before_work_when_a_budget_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(BudgetUnreachable, match="allow at least"):
        _prune(tmp_path, [{"name": "good", "max_params": 600_000}, {"name": "dust", "max_params": 100}])
    assert not list((tmp_path / "workspace" / "stages" / "prune").rglob("*.safetensors"))


@pytest.mark.parametrize(("form", "error"), [("safetensors", InvalidData), ("gguf:q4_k_m", BudgetUnreachable)])
def test_stage_looks_for_layers_to_cut_where_the_job_writes_no_gguf(
    tmp_path: Path, form: str, error: type[FoundryError]
) -> None:
    """As the estimate that admitted the job did; the text is too short, so that nothing is cut."""
    save_genuine(tmp_path / "teacher", "gemma3")
    data = write_texts(tmp_path / "text.jsonl", documents=1)
    whole = open_checkpoint(tmp_path / "teacher")
    most = whole.family.parameter_count(whole.shape, whole.present) - 1
    target = {"name": "kiosk", "max_params": most, "format": "gguf:q4_k_m"}
    given = {"teacher": "t", "data": "d", "targets": [target], "formats": [form], "prune": {"axes": ["layers"]}}
    spec = parse(JobSpec, given)
    inputs = Inputs(teacher=str(whole.folder), data=str(data), data_sha256="0" * 64)
    with pytest.raises(error):
        prune(spec, Workspace.create(tmp_path / "workspace", spec, inputs), CONTEXT)
