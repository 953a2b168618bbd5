"""The correct stage: adapt the teacher to the data first, and keep that only if it helps.

A teacher that never saw the customer's kind of text is a poor guide to it (Minitron, 2408.11796, "teacher correction").
"""

import shutil
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.distill.checkpoints import digest_of
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.means import learns_on_host
from foundry.engine.distill.objectives import predict_text
from foundry.engine.distill.schedule import Schedule, make_schedule, sequence_length
from foundry.engine.distill.text import Texts, read_texts
from foundry.engine.distill.trainer import Training, summary, train
from foundry.engine.evaluate.compare import compare
from foundry.engine.lora import CHECKPOINT_STEPS, EVALUATIONS, WARMUP_RATIO, attach, merge, save_adapter
from foundry.engine.models import load_model, load_tokenizer, local_folder, save_model, trunk_and_head
from foundry.engine.packed import Packed
from foundry.engine.workspace import Workspace, write_json
from foundry.errors import Diverged
from foundry.intake.checkpoint import context_limit
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.stages import Correct

_NAME = "teacher"


def correct(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Write teacher/ when the held-out loss falls; say in an event which way it went. Resumes from a checkpoint."""
    assert spec.correct is not None
    source, stage = local_folder(workspace.inputs.teacher), workspace.stage("correct")
    model = _trainable(source, spec.correct, spec.seed, context)
    texts = _texts(model, load_tokenizer(source), workspace, spec, context)
    schedule = make_schedule(
        texts.train, tokens=spec.correct.tokens, batch_tokens=None, peak_rate=spec.correct.learning_rate,
        warmup_ratio=WARMUP_RATIO, seed=spec.seed,
    )  # fmt: skip
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    # An adapter is small, and float32 itself.
    on_host = spec.correct.method == "full" and learns_on_host("correct", bare.num_parameters(), context, loaded=True)
    learner = Learner(_NAME, bare, context.dtype, on_host=on_host)
    try:
        histories = train([learner], _training(spec, workspace, texts, schedule, context), workspace, context)
    except Diverged as error:
        message = f"correct: the teacher stays as it was, for its correction came to nothing. {error.message}"
        context.report(EventType.WARNING, message, level="warning", stage="correct", kept=False)
        workspace.finish("correct", kept=False)
        return
    candidate = stage / "candidate"
    _save(model, source, candidate)
    del learner, bare, model  # to be measured are those on disk, one at a time: two may be more than fits
    write_json(stage / "history.json", histories[_NAME])
    before, after = (_loss(folder, texts.held_out, context) for folder in (source, candidate))
    kept = _keep_if_better(candidate, stage / "teacher", before, after)
    message = f"correct: the teacher's held-out loss went from {before:.4f} to {after:.4f} nats per token; " + (
        "the corrected teacher is used" if kept else "it did not fall, so the teacher stays as it was"
    )
    context.report(
        EventType.LOG, message, stage="correct", kept=kept, held_out_loss_before=before, held_out_loss_after=after
    )
    workspace.finish("correct", **{**summary(histories[_NAME]), "kept": kept,
                                   "held_out_loss_before": before, "held_out_loss_after": after})  # fmt: skip


def _trainable(source: Path, config: Correct, seed: int, context: RunContext) -> PreTrainedModel | PeftModel:
    model = load_model(source, dtype=context.dtype, device=context.device)
    if config.method == "full":
        return model
    return attach(model, rank=config.rank, alpha=2 * config.rank, dropout=0.0, seed=seed)


def _texts(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, workspace: Workspace, spec: JobSpec,
    context: RunContext,
) -> Texts:  # fmt: skip
    assert spec.correct is not None
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    length = sequence_length(None, context_limit(bare.config.to_dict()), "/correct")
    vocabulary = trunk_and_head(bare).head_VH.shape[0]
    data = workspace.inputs.data
    return read_texts("correct", data, tokenizer, length, spec.correct.tokens, vocabulary, spec.seed, context)


def _training(spec: JobSpec, workspace: Workspace, texts: Texts, schedule: Schedule, context: RunContext) -> Training:
    assert spec.correct is not None
    digest = digest_of(
        stage=spec.correct.model_dump(mode="json"), seed=spec.seed, teacher=spec.teacher,
        data=workspace.inputs.data_sha256,
    )  # fmt: skip
    return Training(
        stage="correct", schedule=schedule, text=texts.train, held_out=texts.held_out, objective=predict_text(context),
        checkpoint_steps=CHECKPOINT_STEPS, evaluate_steps=max(1, schedule.steps // EVALUATIONS), digest=digest,
    )  # fmt: skip


def _save(model: PreTrainedModel | PeftModel, source: Path, folder: Path) -> None:
    if not isinstance(model, PeftModel):
        save_model(model, like=source, folder=folder)
        return
    adapter = folder.with_name("adapter")
    save_adapter(model, adapter)
    merge(source, adapter, folder)
    shutil.rmtree(adapter)


def _loss(folder: Path, held_out: Packed, context: RunContext) -> float:
    """Of the weights as they lie on disk, rounded as they will be used."""
    model = load_model(folder, dtype=context.dtype, device=context.device)
    return compare(model, None, held_out, context).held_out_loss


def _keep_if_better(candidate: Path, teacher: Path, before: float, after: float) -> bool:
    shutil.rmtree(teacher, ignore_errors=True)
    if after < before:
        candidate.rename(teacher)
        return True
    shutil.rmtree(candidate)
    return False
