"""The distill stage: the students of all targets learn from one teacher in one loop."""

import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.attention import attend_within_documents
from foundry.engine.compiled import compile_layers, compiler_at_rest
from foundry.engine.context import RunContext
from foundry.engine.distill.checkpoints import digest_of
from foundry.engine.distill.hidden import HiddenMatch, Pairs
from foundry.engine.distill.judge import has_helped
from foundry.engine.distill.launch import launch
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.means import compiles, held_in, learns_in_shards, learns_on_host
from foundry.engine.distill.memory import checkpoint_activations
from foundry.engine.distill.objectives import Goal, match_saved, match_teacher
from foundry.engine.distill.parallel import ALONE, Ranks, fill
from foundry.engine.distill.sampled import sample, sampled_documents
from foundry.engine.distill.schedule import Schedule, make_schedule, sequence_length
from foundry.engine.distill.signal import Origin, SavedSignal, text_sha256
from foundry.engine.distill.text import Texts, read_texts
from foundry.engine.distill.trainer import Objective, Training, summary, train
from foundry.engine.evaluate.compare import check_same_vocabulary
from foundry.engine.models import load_model, load_tokenizer, local_folder, save_model, trunk_and_head
from foundry.engine.norms import fuse_norms
from foundry.engine.packed import Packed
from foundry.engine.workspace import Workspace, sha256_of, write_json
from foundry.intake.checkpoint import checkpoint_sha256, context_limit
from foundry.intake.documents import Document
from foundry.spec.family import families
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.stages import Distill
from foundry.spec.variant import PrunePlan

_EVALUATIONS = 10
_MANY_EPOCHS = 20


def distill(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Write model/ and history.json for every target whose plan cuts anything. Resumes from the newest checkpoint.

    With several accelerators a process for each does it.
    """
    students = _students(spec, workspace)
    for target in (target for target in spec.target_names if target not in students):
        message = f"nothing was cut for target {target!r}, so there is nothing to distil"
        context.report(EventType.STAGE_SKIPPED, message, stage="distill", target=target)
    if not students:
        workspace.finish("distill", targets={})
        return
    sample(spec, workspace, context)
    assert spec.distill is not None
    plans = [_plan(workspace, target) for target in students]
    if learns_in_shards(plans, context, copies=_copies(spec.distill)):
        launch(workspace, context)
    else:
        learn(spec, workspace, context)


def learn(spec: JobSpec, workspace: Workspace, context: RunContext, ranks: Ranks = ALONE) -> None:
    """The stage itself, in this process alone or as one of several."""
    config = spec.distill
    assert config is not None
    students = _students(spec, workspace)
    teacher_folder = local_folder(workspace.teacher)
    teacher = load_model(teacher_folder, dtype=context.dtype, device=_loaded_to(context, ranks))
    ranks.shard(teacher)
    attend_within_documents(teacher, context.dtype)
    fuse_norms(teacher)
    sampled = sampled_documents(workspace)
    texts = _texts(config, load_tokenizer(teacher_folder), teacher, workspace, spec, context, sampled)
    schedule = make_schedule(
        texts.train, tokens=config.tokens, batch_tokens=config.batch_tokens, peak_rate=config.learning_rate,
        warmup_ratio=config.warmup_ratio, seed=spec.seed, decay=config.decay,
    )  # fmt: skip
    _announce(schedule, len(students), context)
    pairs = {target: _pairs(config, target, workspace) for target in students}
    on_host = ranks.mesh is None and learns_on_host(
        "distill", _parameters(workspace, students), context, optimizer=config.optimizer, copies=_copies(config),
    )  # fmt: skip
    learners = [
        _learner(target, folder, teacher, pairs[target], config, context, ranks, on_host=on_host)
        for target, folder in students.items()
    ]
    if compiles(config, teacher, [learner.model for learner in learners], schedule, context, ranks):
        for model in (teacher, *(learner.model for learner in learners)):
            compile_layers(model)
    watched = {layer for found in pairs.values() if found is not None for _, layer in found.layers}
    objective = _objective(config, teacher, teacher_folder, texts.train, watched, workspace, context, ranks)
    del teacher  # A saved signal is all that is needed of it.
    training = Training(
        stage="distill", schedule=schedule, text=texts.train, held_out=texts.held_out, objective=objective,
        checkpoint_steps=config.checkpoint_steps, evaluate_steps=_evaluate_steps(config, schedule),
        digest=_digest(spec, workspace, students), patience_looks=config.patience_looks,
        time_budget_s=config.time_budget_s,
    )  # fmt: skip
    with compiler_at_rest():
        histories = train(learners, training, workspace, context, ranks)
    del training, objective  # and the teacher that it asks: a student that is judged is judged beside one from disk
    for learner in learners:
        folder, source = workspace.stage("distill", learner.name), students[learner.name]
        model, history = learner.model, histories[learner.name]
        if ranks.mesh is not None:
            model = _gathered(model, source, ranks)
        elif not has_helped(
            learner.name, history, model, source, teacher_folder, texts.held_out, config, context
        ):  # fmt: skip
            model, history["shipped_step"] = load_model(source, dtype=torch.float32, device="cpu"), 0
        if ranks.is_first:
            save_model(model, like=source, folder=folder / "model")
            write_json(folder / "history.json", history)
    if ranks.is_first:
        said = {"sampled_documents": len(sampled)} if sampled else {}
        workspace.finish("distill", targets={name: summary(history) | said for name, history in histories.items()})
        shutil.rmtree(_signal_folder(workspace), ignore_errors=True)


def _loaded_to(context: RunContext, ranks: Ranks) -> torch.device:
    """Where a model is whole: before it is divided, in the machine's memory."""
    return context.device if ranks.size == 1 else torch.device("cpu")


def _gathered(model: PreTrainedModel, source: Path, ranks: Ranks) -> PreTrainedModel:
    """On the first process the model with whole weights; on the others itself."""
    plain = load_model(source, dtype=torch.float32, device="cpu") if ranks.is_first else model
    fill(plain, model, ranks)
    return plain


def _texts(
    config: Distill, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel, workspace: Workspace, spec: JobSpec,
    context: RunContext, sampled: Sequence[Document],
) -> Texts:  # fmt: skip
    length = sequence_length(
        config.sequence_tokens, context_limit(teacher.config.to_dict()), "/distill/sequence_tokens"
    )
    vocabulary = trunk_and_head(teacher).head_VH.shape[0]
    data = workspace.inputs.data
    return read_texts(
        "distill", data, tokenizer, length, config.tokens, vocabulary, spec.seed, context, config.general_ratio, sampled
    )


def _objective(
    config: Distill, teacher: PreTrainedModel, folder: Path, text: Packed, watched: Collection[int],
    workspace: Workspace, context: RunContext, ranks: Ranks,
) -> Objective:  # fmt: skip
    """Ask the teacher at every step, or let it read the text once now."""
    goal = Goal.of(config)
    if config.signal == "live":
        return match_teacher(teacher, goal, context, watched)
    origin = Origin(
        teacher_sha256=checkpoint_sha256(folder), tokenizer_sha256=sha256_of(folder / "tokenizer.json"),
        text_sha256=text_sha256(text), k=config.signal.k, temperature=config.temperature,
    )  # fmt: skip
    saved = SavedSignal(_signal_folder(workspace), origin, text)
    saved.capture(teacher, "distill", context, ranks)
    return match_saved(saved, goal, context)


def _signal_folder(workspace: Workspace) -> Path:
    return workspace.stage("distill") / "signal"


def _students(spec: JobSpec, workspace: Workspace) -> dict[str, Path]:
    """Target -> folder of its pruned student; a target whose plan cuts nothing already is its teacher."""
    cut = [target for target in spec.target_names if not _plan(workspace, target).cuts_nothing]
    return {target: workspace.stage("prune", target) / "model" for target in cut}


def _plan(workspace: Workspace, target: str) -> PrunePlan:
    return PrunePlan.model_validate_json((workspace.stage("prune", target) / "plan.json").read_text(encoding="utf-8"))


def _parameters(workspace: Workspace, targets: Iterable[str]) -> int:
    plans = [_plan(workspace, target) for target in targets]
    return sum(families()[plan.family].parameter_count(plan.shape) for plan in plans)


def _copies(config: Distill) -> int:
    """How many further copies of its weights a student has: an average, the best so far."""
    return (config.ema_decay is not None) + (config.patience_looks is not None)


def _pairs(config: Distill, target: str, workspace: Workspace) -> Pairs | None:
    if config.hidden is None:
        return None
    plan = _plan(workspace, target)
    return Pairs.of(config.hidden, plan.layers, plan.teacher_shape.layers, plan.teacher_shape.hidden)


def _learner(
    target: str, folder: Path, teacher: PreTrainedModel, pairs: Pairs | None, config: Distill, context: RunContext,
    ranks: Ranks, *, on_host: bool,
) -> Learner:  # fmt: skip
    student = load_model(folder, dtype=held_in(context, ranks), device=_loaded_to(context, ranks))
    check_same_vocabulary(student, teacher)
    if config.gradient_checkpointing:
        checkpoint_activations(student)
    ranks.shard(student)
    hidden = None
    if pairs is not None:
        width = trunk_and_head(student).head_VH.shape[1]
        hidden = HiddenMatch(pairs, width, context.seed).to(context.device)
    return Learner(
        target, student, context.dtype, optimizer=config.optimizer, ema_decay=config.ema_decay,
        keeps_best=config.patience_looks is not None, hidden=hidden, ranks=ranks, on_host=on_host,
    )  # fmt: skip


def _evaluate_steps(config: Distill, schedule: Schedule) -> int:
    return config.evaluate_steps or max(1, schedule.steps // _EVALUATIONS)


def _announce(schedule: Schedule, students: int, context: RunContext) -> None:
    message = (
        f"distill: {schedule.steps:,} steps of {schedule.batch_tokens:,} tokens for {students} student(s); "
        f"the text is read {schedule.epochs:.1f} times"
    )
    context.report(EventType.LOG, message, stage="distill", steps=schedule.steps, epochs=schedule.epochs)
    if schedule.epochs > _MANY_EPOCHS:
        message = (
            f"distill: {schedule.epochs:.0f} passes over the same text; watch the held-out loss, and if it rises give "
            "more text, let the teacher write some (distill.sampled) or lower distill.tokens"
        )
        context.report(EventType.WARNING, message, level="warning", stage="distill", epochs=schedule.epochs)


def _digest(spec: JobSpec, workspace: Workspace, students: dict[str, Path]) -> str:
    return digest_of(
        stage=spec.distill.model_dump(mode="json") if spec.distill else None,
        correct=spec.correct.model_dump(mode="json") if spec.correct else None,
        seed=spec.seed, teacher=spec.teacher, data=workspace.inputs.data_sha256,
        students={target: checkpoint_sha256(folder) for target, folder in students.items()},
    )  # fmt: skip
