"""The loop on a GPU: what a CPU learns, the same bits after a stop, the same loss when memory runs out."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foundry.engine.attention import attend_within_documents
from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import pack
from foundry.engine.distill.learner import Learner, Lesson
from foundry.engine.distill.objectives import Goal, match_saved, match_teacher
from foundry.engine.distill.schedule import make_schedule
from foundry.engine.distill.signal import Origin, SavedSignal, text_sha256
from foundry.engine.distill.trainer import History, Objective, Training, train
from foundry.engine.evaluate.compare import compare
from foundry.engine.packed import Batch, Packed
from foundry.engine.workspace import Workspace
from foundry.errors import OutOfMemory
from foundry.intake.documents import Document
from foundry.spec.lifecycle import EventType
from tests import tiny
from tests.gpu.conftest import DEVICE, IS_CUDA, every_dtype, needs_gpu, new_model
from tests.unit.engine.conftest import Heard

pytestmark = needs_gpu

CPU = torch.device("cpu")
STEPS, ROWS, LENGTH = 8, 8, 128
WAYS: dict[str, dict[str, Any]] = {
    "adamw with an average": {"ema_decay": 0.9},
    "muon, the best look kept": {"optimizer": "muon", "keeps_best": True},
    "masters in the machine's memory": {"on_host": True},
}


def texts(length: int = LENGTH) -> tuple[Packed, Packed]:
    """Rows of several documents each."""
    tokenizer = tiny.new_tokenizer()
    documents = [Document(key=str(n), text=tiny.sentence(n, 30)) for n in range(400)]
    return pack(documents[40:], tokenizer, length, seed=0), pack(documents[:40], tokenizer, length, seed=0)


def new_training(objective: Objective, *, steps: int = STEPS, length: int = LENGTH, **more: Any) -> Training:
    text, held_out = texts(length)
    batch = ROWS * length
    schedule = make_schedule(text, tokens=steps * batch, batch_tokens=batch, peak_rate=3e-3, warmup_ratio=0.1, seed=0)
    return Training(
        stage="distill", schedule=schedule, text=text, held_out=held_out, objective=objective, checkpoint_steps=3,
        evaluate_steps=2, digest="one", **more,
    )  # fmt: skip


def new_learner(context: RunContext, *, held: torch.dtype = torch.float32, sizes: Any = None, **way: Any) -> Learner:
    model = new_model(1, **(sizes or {"ffn": 192})).to(context.device, held)
    return Learner("small", model, context.dtype, **way)


def objective_of(context: RunContext, **sizes: int) -> Objective:
    """A live teacher, held as a job holds it."""
    teacher = new_model(0, **sizes).to(context.device, context.dtype)
    attend_within_documents(teacher, context.dtype)
    return match_teacher(teacher, Goal(), context)


def losses_of(history: History, key: str = "loss") -> list[float]:
    return [row[key] for row in history["rows"] if key in row]


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differing = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not differing, f"{len(differing)} of {len(one)}: {differing[:5]}"


@every_dtype
def test_a_gpu_learns_what_a_cpu_does(dtype: torch.dtype, context: RunContext, tmp_path: Path) -> None:
    histories = []
    for device, its in ((CPU, torch.float32), (DEVICE, dtype)):
        here = replace(context, device=device, dtype=its)
        training = new_training(objective_of(here))
        histories.append(train([new_learner(here)], training, Workspace(tmp_path / device.type), here)["small"])
    # bfloat16 rounds what goes into every product to 8 bits; losses are means over hundreds of tokens.
    error = 1e-4 if dtype == torch.float32 else 3e-2
    for key in ("loss", "held_out_loss"):
        assert losses_of(histories[1], key) == pytest.approx(losses_of(histories[0], key), rel=error)
    assert losses_of(histories[1])[-1] < 0.9 * losses_of(histories[1])[0]


@pytest.mark.parametrize("on_host", [False, True], ids=["beside it", "in the machine's memory"])
def test_a_student_with_masters_learns_as_from_float32_weights(
    on_host: bool, context: RunContext, tmp_path: Path
) -> None:
    if not IS_CUDA:
        pytest.skip("tests/unit/engine/test_distill_masters.py holds this on a CPU")
    here, histories = replace(context, dtype=torch.bfloat16), []
    for held, way in ((torch.float32, {}), (torch.bfloat16, {"on_host": on_host})):
        learner, folder = new_learner(here, held=held, **way), tmp_path / str(held)
        histories.append(train([learner], new_training(objective_of(here)), Workspace(folder), here)["small"])
    one, other = (losses_of(history) for history in histories)
    assert other == pytest.approx(one, rel=2e-2)


@every_dtype
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=["held in float32", "held in bfloat16"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_train_gives_the_same_bits_when_stopped_and_resumed_as_when_not(
    way: dict[str, Any], held: torch.dtype, dtype: torch.dtype, context: RunContext, heard: Heard, tmp_path: Path
) -> None:
    if held == torch.bfloat16 and (not IS_CUDA or dtype != torch.bfloat16):
        pytest.skip("students are held in bfloat16 on a GPU that computes in it")
    if held == torch.float32 and way.get("on_host"):
        pytest.skip("a student held in float32 has no masters")
    here = replace(context, dtype=dtype)
    training = new_training(objective_of(here), patience_looks=9 if way.get("keeps_best") else None)

    def run(folder: str) -> tuple[Learner, History]:
        learner = new_learner(here, held=held, **way)
        return learner, train([learner], training, Workspace(tmp_path / folder), here)["small"]

    whole, history = run("whole")
    heard.events.clear()
    heard.stop_after = 5
    with pytest.raises(Stopped):
        run("interrupted")
    assert [step for step, _ in Workspace(tmp_path / "interrupted").checkpoints("distill")] == [5, 3]
    heard.stop_after = None
    resumed, resumed_history = run("interrupted")
    assert resumed_history == history
    assert_same_bits(whole.state(), resumed.state())
    assert_same_bits(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


@every_dtype
def test_saved_signal_of_all_tokens_gives_the_gradients_of_the_live_teacher(
    dtype: torch.dtype, context: RunContext, tmp_path: Path
) -> None:
    here, (text, _) = replace(context, dtype=dtype), texts()
    teacher, goal = new_model(0).to(here.device, here.dtype), Goal(cross_entropy_weight=0.3)
    origin = Origin(
        teacher_sha256="", tokenizer_sha256="", text_sha256=text_sha256(text), k=len(tiny.new_tokenizer()),
        temperature=1.0,
    )  # fmt: skip
    saved = SavedSignal(tmp_path, origin, text)
    saved.capture(teacher, "distill", here)
    batch = text.batch([7, 0, 12], here.device)
    found = []
    for objective in (match_teacher(teacher, goal, here), match_saved(saved, goal, here)):
        learner = new_learner(here)
        loss = learner.accumulate(batch, objective(batch, 1 / int(batch.targets_BS.sum())))
        found.append((loss, [p.grad for p in learner.model.parameters()]))
    (live, live_gradients), (kept, kept_gradients) = found
    # A log probability of float16 is wrong by at most one part in 2048. In bfloat16 the teacher reads rows of the text
    # in batches of another size, and a gradient of the logits on the edge between two numbers is rounded the other way.
    assert kept == pytest.approx(live, rel=1e-3 if dtype == torch.float32 else 3e-3)
    for one, other in zip(live_gradients, kept_gradients, strict=True):
        assert one is not None and other is not None
        assert (one - other).abs().max() <= (2e-3 if dtype == torch.float32 else 2e-2) * one.abs().max()


@pytest.fixture
def wide() -> dict[str, int]:
    """Sizes at which what a row of 1,024 tokens keeps for its backward pass takes far more than the weights."""
    return {"hidden": 256, "ffn": 2048, "heads": 4, "head_dim": 64, "layers": 4}


def limited(limit_bytes: float) -> None:
    """Let this process have so much of the GPU and no more."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit_bytes / torch.cuda.get_device_properties(DEVICE).total_memory)


@pytest.mark.skipif(not IS_CUDA, reason="a limit of memory needs a GPU")
@every_dtype
def test_train_halves_the_micro_batch_when_the_gpu_is_full_and_the_loss_is_the_same(
    dtype: torch.dtype, context: RunContext, heard: Heard, tmp_path: Path, wide: dict[str, int]
) -> None:
    here = replace(context, dtype=dtype)
    training = new_training(objective_of(here, **wide), steps=3, length=1024)

    def run(folder: str, share: float | None) -> tuple[list[float], int]:
        """Losses, and the peak of memory beyond what weights, gradients and moments take."""
        heard.events.clear()
        learner = new_learner(here, held=dtype, sizes=wide)
        held_bytes = torch.cuda.memory_allocated() + learner.state_bytes
        if share is not None:
            limited(held_bytes + share * beyond_bytes)
        torch.cuda.reset_peak_memory_stats()
        history = train([learner], training, Workspace(tmp_path / folder), here)["small"]
        return losses_of(history), torch.cuda.max_memory_allocated() - held_bytes

    free, beyond_bytes = run("free", None)
    assert not heard.of(EventType.WARNING)
    found, _ = run("full", 0.75)
    said = [warning.message for warning in heard.of(EventType.WARNING)]
    assert said and said[0] == "out of memory; going on with 4 sequences at a time"
    assert found == pytest.approx(free, rel=1e-4 if dtype == torch.float32 else 5e-3)


@pytest.mark.skipif(not IS_CUDA, reason="a limit of memory needs a GPU")
def test_train_gives_up_with_a_way_out_when_not_even_one_sequence_fits(
    context: RunContext, heard: Heard, tmp_path: Path, wide: dict[str, int]
) -> None:
    teacher = objective_of(context, **wide)

    def ask_when_full(batch: Batch, scale: float) -> Lesson:
        limited(torch.cuda.memory_allocated() + 20e6)
        return teacher(batch, scale)

    training = new_training(ask_when_full, steps=1, length=1024)
    with pytest.raises(OutOfMemory, match="choose shorter sequences"):
        train([new_learner(context, sizes=wide)], training, Workspace(tmp_path / "job"), context)
    said = [warning.message for warning in heard.of(EventType.WARNING)]
    assert [message.split()[6] for message in said] == ["4", "2", "1"]


@every_dtype
def test_compare_finds_on_a_gpu_what_it_does_on_a_cpu(dtype: torch.dtype, context: RunContext) -> None:
    _, held_out = texts()
    found = []
    for device, its in ((CPU, torch.float32), (DEVICE, dtype)):
        student, teacher = (new_model(seed).to(device, its) for seed in (1, 0))
        found.append(compare(student, teacher, held_out, replace(context, device=device, dtype=its)))
    error = 1e-5 if dtype == torch.float32 else 2e-2
    assert found[1].held_out_loss == pytest.approx(found[0].held_out_loss, rel=error)
    assert found[1].kl_to_teacher == pytest.approx(found[0].kl_to_teacher, rel=error)
    assert found[1].top1_agreement_ratio == pytest.approx(found[0].top1_agreement_ratio, abs=max(error, 3e-2))
    assert found[1].tokens == found[0].tokens


def document_starts(text: Packed) -> Sequence[int]:
    """How many documents start in each row."""
    starts: list[int] = (text.positions_NS == 0).sum(dim=1).tolist()
    return starts


@every_dtype
def test_documents_of_a_row_do_not_see_each_other(dtype: torch.dtype, context: RunContext) -> None:
    text, _ = texts()
    row = next(n for n, starts in enumerate(document_starts(text)) if 2 <= starts <= 4)
    here = replace(context, dtype=dtype)
    learner = new_learner(here)
    whole = text.batch([row], here.device)
    starts = [*(text.positions_NS[row] == 0).nonzero().flatten().tolist(), text.sequence_tokens]
    first, last = starts[1], starts[2]
    alone = Batch(*(tensor[:, first:last] for tensor in whole[:3]))
    with torch.no_grad():
        apart, together = learner.hidden(alone), learner.hidden(whole)[:, first:last]
    assert (apart - together).abs().max() <= (1e-4 if dtype == torch.float32 else 5e-2) * apart.abs().max()
