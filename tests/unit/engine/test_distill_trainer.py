"""The loop's laws on genuine tiny models: exact resume, exact accumulation, stopping, diverging, too little memory."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import pack
from foundry.engine.distill import logbook, memory
from foundry.engine.distill.learner import Learner, Lesson
from foundry.engine.distill.losses import Head, Scored
from foundry.engine.distill.memory import checkpoint_activations, micro_batch_rows
from foundry.engine.distill.objectives import Goal, match_teacher, predict_text
from foundry.engine.distill.schedule import make_schedule
from foundry.engine.distill.trainer import History, Objective, Training, train
from foundry.engine.packed import Batch, Packed
from foundry.engine.workspace import Workspace
from foundry.errors import Diverged, OutOfMemory
from foundry.intake.documents import Document
from foundry.spec.lifecycle import EventType
from tests import tiny
from tests.unit.engine.conftest import Heard


def texts() -> tuple[Packed, Packed]:
    tokenizer = tiny.new_tokenizer()
    documents = [Document(key=str(n), text=tiny.sentence(n, 30)) for n in range(60)]
    return pack(documents[10:], tokenizer, 32, seed=0), pack(documents[:10], tokenizer, 32, seed=0)


def new_training(objective: Objective, *, steps: int = 12, digest: str = "one") -> Training:
    text, held_out = texts()
    schedule = make_schedule(text, tokens=steps * 256, batch_tokens=256, peak_rate=3e-3, warmup_ratio=0.1, seed=0)
    return Training(
        stage="distill", schedule=schedule, text=text, held_out=held_out, objective=objective,
        checkpoint_steps=5, evaluate_steps=4, digest=digest,
    )  # fmt: skip


def new_learners(context: RunContext, *ffn: int) -> list[Learner]:
    return [Learner(f"ffn-{width}", tiny.new_model(ffn=width, seed=width), context.dtype) for width in ffn]


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state().items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def teacher_objective(context: RunContext) -> Objective:
    return match_teacher(tiny.new_model(seed=1), Goal(), context)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "job")


def test_train_gives_the_same_bits_when_stopped_and_resumed_as_when_not(
    context: RunContext, heard: Heard, tmp_path: Path, teacher_objective: Objective
) -> None:
    training = new_training(teacher_objective)
    whole = new_learners(context, 32, 48)
    histories = train(whole, training, Workspace(tmp_path / "whole"), context)

    interrupted = Workspace(tmp_path / "interrupted")
    heard.events.clear()
    heard.stop_after = 7
    with pytest.raises(Stopped):
        train(new_learners(context, 32, 48), training, interrupted, context)
    assert [step for step, _ in interrupted.checkpoints("distill")] == [7, 5]
    heard.stop_after = None
    resumed = new_learners(context, 32, 48)
    resumed_histories = train(resumed, training, interrupted, context)

    for one, other in zip(whole, resumed, strict=True):
        assert_same_bits(weights_of(one), weights_of(other))
    assert histories == resumed_histories


def test_train_resumes_from_the_older_checkpoint_when_the_newest_is_damaged(
    context: RunContext, heard: Heard, workspace: Workspace, teacher_objective: Objective
) -> None:
    training = new_training(teacher_objective)
    heard.stop_after = 7
    with pytest.raises(Stopped):
        train(new_learners(context, 32), training, workspace, context)
    (_, newest), *_ = workspace.checkpoints("distill")
    weights = newest / "ffn-32.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    heard.stop_after = None
    heard.events.clear()
    train(new_learners(context, 32), training, workspace, context)
    assert [event.data["step"] for event in heard.of(EventType.PROGRESS)] == list(range(6, 13))


def test_train_starts_over_when_the_checkpoint_belongs_to_another_spec(
    context: RunContext, heard: Heard, workspace: Workspace, teacher_objective: Objective
) -> None:
    heard.stop_after = 6
    with pytest.raises(Stopped):
        train(new_learners(context, 32), new_training(teacher_objective), workspace, context)
    heard.stop_after = None
    heard.events.clear()
    train(new_learners(context, 32), new_training(teacher_objective, digest="another"), workspace, context)
    assert heard.of(EventType.PROGRESS)[0].data["step"] == 1
    assert "belongs to another spec" in heard.of(EventType.WARNING)[0].message


def test_train_learns_when_matching_a_teacher(
    context: RunContext, heard: Heard, workspace: Workspace, teacher_objective: Objective
) -> None:
    (learner,) = new_learners(context, 32)
    history = train([learner], new_training(teacher_objective, steps=40), workspace, context)["ffn-32"]
    losses = [row["loss"] for row in history["rows"] if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]


def test_train_reports_progress_every_step_and_a_checkpoint_event_each(
    context: RunContext, heard: Heard, workspace: Workspace, teacher_objective: Objective
) -> None:
    history = train(new_learners(context, 32, 48), new_training(teacher_objective), workspace, context)["ffn-48"]
    progress = [event.data for event in heard.of(EventType.PROGRESS)]
    assert [(p["step"], p["steps"]) for p in progress] == [(n, 12) for n in range(1, 13)]
    assert all(p["loss"] > 0 and p["held_out_loss"] > 0 and p["tokens_per_s"] > 0 for p in progress)
    assert progress[-1]["left_s"] == 0
    assert [event.data["step"] for event in heard.of(EventType.CHECKPOINT)] == [5, 10]
    assert [row["step"] for row in history["rows"] if "held_out_loss" in row] == [0, 4, 8, 12]
    assert history["tokens"] == 12 * 256


def test_train_writes_no_pickle(
    context: RunContext, heard: Heard, workspace: Workspace, teacher_objective: Objective
) -> None:
    heard.stop_after = 3
    with pytest.raises(Stopped):
        train(new_learners(context, 32), new_training(teacher_objective), workspace, context)
    (_, folder), *_ = workspace.checkpoints("distill")
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_gradients_equal_those_of_the_whole_batch_when_it_is_cut_into_micro_batches(
    context: RunContext, teacher_objective: Objective
) -> None:
    text, _ = texts()
    counted = int(text.targets_NS[:6].sum())
    gradients = []
    for cuts in ([(0, 6)], [(0, 1), (1, 3), (3, 6)]):
        (learner,) = new_learners(context, 32)
        loss = 0.0
        for start, end in cuts:
            batch = text.batch(slice(start, end))
            loss += learner.accumulate(batch, teacher_objective(batch, 1 / counted))
        gradients.append((loss, [p.grad.clone() for p in learner.model.parameters() if p.grad is not None]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    for whole, parts in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_gradients_equal_autograd_of_the_plain_loss(context: RunContext) -> None:
    text, _ = texts()
    batch = text.batch(slice(0, 3))
    (learner,) = new_learners(context, 32)
    reference = tiny.new_model(ffn=32, seed=32)
    labels_BS = torch.where(batch.targets_BS, batch.labels_BS, -100)
    logits_BSV = reference(**batch.model_inputs()).logits
    loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=-100)
    loss.backward()  # type: ignore[no-untyped-call]
    found = learner.accumulate(batch, predict_text(context)(batch, 1 / int(batch.targets_BS.sum())))
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    for mine, theirs in zip(learner.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_gradients_of_a_tied_matrix_hold_both_of_its_uses(context: RunContext) -> None:
    text, _ = texts()
    batch = text.batch(slice(0, 2))
    model, reference = tiny.new_model(tied=True), tiny.new_model(tied=True)
    labels_BS = torch.where(batch.targets_BS, batch.labels_BS, -100)
    logits_BSV = reference(**batch.model_inputs()).logits
    torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=-100).backward()  # type: ignore[no-untyped-call]
    Learner("tied", model, context.dtype).accumulate(
        batch, predict_text(context)(batch, 1 / int(batch.targets_BS.sum()))
    )
    torch.testing.assert_close(
        model.get_input_embeddings().weight.grad, reference.get_input_embeddings().weight.grad, rtol=1e-4, atol=1e-6
    )


def test_gradients_are_the_same_when_activations_are_checkpointed(
    context: RunContext, teacher_objective: Objective
) -> None:
    text, _ = texts()
    batch = text.batch(slice(0, 3))
    gradients = []
    for switch in (False, True):
        (learner,) = new_learners(context, 32)
        if switch:
            checkpoint_activations(learner.model)
            assert learner.model.model.layers[0].gradient_checkpointing
        learner.accumulate(batch, teacher_objective(batch, 1.0))
        gradients.append([p.grad for p in learner.model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_learner_decays_projections_but_not_norms_and_embeddings(context: RunContext) -> None:
    (learner,) = new_learners(context, 32)
    decayed, kept = learner._update.groups
    assert decayed["weight_decay"] > 0 and kept["weight_decay"] == 0
    norms = [p for name, p in learner.model.named_parameters() if "norm" in name]
    embeddings = [learner.model.get_input_embeddings().weight, learner.model.get_output_embeddings().weight]
    assert {id(p) for p in kept["params"]} == {id(p) for p in (*norms, *embeddings)}


def test_micro_batch_is_as_large_as_the_budget_and_at_most_8192_tokens(context: RunContext) -> None:
    text, _ = texts()
    learners = new_learners(context, 32, 48)
    row_bytes = micro_batch_rows(learners, text, context.device).row_bytes
    assert micro_batch_rows(learners, text, context.device, budget_bytes=3 * row_bytes).rows == 3
    assert micro_batch_rows(learners, text, context.device).rows == 8192 // 32
    assert not any(learner.model.model.layers[0].gradient_checkpointing for learner in learners)


def test_micro_batch_is_one_row_with_checkpointed_activations_when_memory_is_small(context: RunContext) -> None:
    text, _ = texts()
    (learner,) = new_learners(context, 32)
    before = micro_batch_rows([learner], text, context.device)
    fit = micro_batch_rows([learner], text, context.device, budget_bytes=before.row_bytes // 2)
    assert learner.model.model.layers[0].gradient_checkpointing
    assert fit.rows >= 1 and fit.row_bytes < before.row_bytes / 4


def test_measuring_a_row_keeps_nothing_of_it(context: RunContext) -> None:
    text, _ = texts()
    (learner,) = new_learners(context, 32)
    marks: list[weakref.ref[_Mark]] = []

    def mark(_: nn.Module, __: Any, output: Tensor) -> None:
        assert output.grad_fn is not None
        output.grad_fn.metadata["mark"] = made = _Mark()  # which lives as long as this part of the graph
        marks.append(weakref.ref(made))

    learner.model.base_model.layers[0].register_forward_hook(mark)
    micro_batch_rows([learner], text, context.device)
    gc.collect()
    assert [one() for one in marks] == [None, None]


class _Mark:
    """Something that can be referred to weakly."""


def test_bytes_of_a_row_are_those_that_one_more_row_holds(context: RunContext) -> None:
    """By hand: about 14 hidden, 6 attention and 5 ffn values of each of a Llama's layers."""
    text, _ = texts()
    (learner,) = new_learners(context, 32)
    tokens, hidden, ffn, attention, layers = text.sequence_tokens, 32, 32, 4 * 8, 2
    about = 4 * tokens * layers * (14 * hidden + 6 * attention + 5 * ffn)
    assert 0.5 < micro_batch_rows([learner], text, context.device).row_bytes / about < 1.5


def test_limit_of_memory_is_the_smallest_of_the_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/jobs.slice/one.service\n")
    (tmp_path / "jobs.slice" / "one.service").mkdir(parents=True)
    (tmp_path / "jobs.slice" / "memory.max").write_text("123456\n")
    (tmp_path / "jobs.slice" / "one.service" / "memory.max").write_text("max\n")
    assert memory._limits(tmp_path, own)[-1:] == [123456]


def test_train_takes_a_cap_and_tells_it_and_gives_the_same_loss(
    context: RunContext, heard: Heard, tmp_path: Path, teacher_objective: Objective
) -> None:
    free, capped = Workspace(tmp_path / "free"), Workspace(tmp_path / "capped")
    assert not capped.halve_micro_batch()
    capped.note_micro_batch("distill", 6)
    assert capped.halve_micro_batch() and capped.micro_batch_cap == 3
    found = [
        train(new_learners(context, 32), new_training(teacher_objective, steps=4), workspace, context)["ffn-32"]
        for workspace in (free, capped)
    ]
    assert [e.data["micro_batch_rows"] for e in heard.of(EventType.LOG) if "micro_batch_rows" in e.data] == [8, 3]
    assert capped.micro_batch_rows("distill") == 3
    losses = [[row["loss"] for row in history["rows"] if "loss" in row] for history in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_train_says_diverged_and_keeps_the_last_good_checkpoint_when_the_loss_is_not_a_number(
    context: RunContext, heard: Heard, workspace: Workspace, teacher_objective: Objective
) -> None:
    def objective(batch: Batch, scale: float) -> Lesson:
        step = len(heard.of(EventType.PROGRESS))
        return teacher_objective(batch, scale if step < 8 else float("nan"))

    learners = new_learners(context, 32)
    with pytest.raises(
        Diverged, match=r"loss is nan for 'ffn-32' at step 9 .* the checkpoint of step 5 is kept"
    ) as caught:
        train(learners, new_training(objective), workspace, context)
    assert caught.value.pointer == "/distill/learning_rate"
    assert [step for step, _ in workspace.checkpoints("distill")] == [5]
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(learners[0]).values())


def test_train_halves_the_micro_batch_and_learns_the_same_when_memory_runs_out(
    context: RunContext, heard: Heard, tmp_path: Path, teacher_objective: Objective
) -> None:
    def refuse_large(batch: Batch, scale: float) -> Lesson:
        if len(batch.ids_BS) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return teacher_objective(batch, scale)

    small, large = new_learners(context, 32), new_learners(context, 32)
    train(large, new_training(teacher_objective), Workspace(tmp_path / "large"), context)
    train(small, new_training(refuse_large), Workspace(tmp_path / "small"), context)
    warnings = heard.of(EventType.WARNING)
    assert [warning.message for warning in warnings] == ["out of memory; going on with 4 sequences at a time"]
    for name, tensor in weights_of(large[0]).items():
        torch.testing.assert_close(tensor, weights_of(small[0])[name], rtol=1e-2, atol=1e-4)


def test_micro_batches_are_smaller_by_the_divisor_also_when_a_checkpoint_says_more(
    context: RunContext, workspace: Workspace, teacher_objective: Objective
) -> None:
    """A run before this one ran out of memory; so often may it be resumed, the batch is not halved again."""
    rows: list[int] = []

    def noting(batch: Batch, scale: float) -> Lesson:
        rows.append(len(batch.ids_BS))
        return teacher_objective(batch, scale)

    train(new_learners(context, 64), new_training(noting, steps=6), workspace, context)
    whole = max(rows)
    for _ in range(2):
        rows.clear()
        halved = replace(context, micro_batch_divisor=2)
        train(new_learners(context, 64), new_training(noting, steps=8), workspace, halved)
        assert rows and max(rows) == whole // 2


def test_train_gives_up_with_a_way_out_when_not_even_one_sequence_fits(
    context: RunContext, workspace: Workspace
) -> None:
    def refuse(batch: Batch, scale: float) -> Lesson:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    with pytest.raises(OutOfMemory, match="choose shorter sequences"):
        train(new_learners(context, 32), new_training(refuse), workspace, context)


def test_train_passes_other_errors_on(context: RunContext, workspace: Workspace) -> None:
    def broken(batch: Batch, scale: float) -> Lesson:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        train(new_learners(context, 32), new_training(broken), workspace, context)


def test_train_counts_every_token_of_the_batch_once_when_rows_have_few_targets(context: RunContext) -> None:
    """The loss is the mean over counted tokens of the whole batch, not a mean of means of its micro-batches."""
    tokenizer = tiny.new_tokenizer()
    documents = [
        Document(key=str(n), prompt=tiny.sentence(n, 4 + n % 5), completion=" " + tiny.sentence(n, 1 + n % 4))
        for n in range(16)
    ]
    text = pack(documents, tokenizer, 48)
    counted = int(text.targets_NS.sum())
    (learner,) = new_learners(context, 32)
    found = 0.0
    for row in range(len(text)):
        batch = text.batch([row])
        found += learner.accumulate(batch, predict_text(context)(batch, 1 / counted))
    logits_BSV = learner.model(**text.batch(slice(None)).model_inputs()).logits
    targets = text.targets_NS
    labels_T = text.batch(slice(None)).labels_BS[targets]
    expected = torch.nn.functional.cross_entropy(logits_BSV[targets], labels_T)
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


def test_train_keeps_a_limited_number_of_history_rows(
    context: RunContext, workspace: Workspace, teacher_objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logbook, "_HISTORY_ROWS", 4)
    history: History = train(new_learners(context, 32), new_training(teacher_objective), workspace, context)["ffn-32"]
    assert [row["step"] for row in history["rows"] if "loss" in row] == [3, 6, 9, 12]


def test_scored_is_what_an_objective_returns(context: RunContext, teacher_objective: Objective) -> None:
    text, _ = texts()
    batch = text.batch([0])
    hidden_TH = torch.zeros(int(batch.targets_BS.sum()), 32)
    scored = teacher_objective(batch, 1.0).score(hidden_TH, Head(torch.zeros(320, 32)))
    assert isinstance(scored, Scored) and float(scored.total) > 0
