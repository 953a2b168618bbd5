"""The evaluate stage: every model of a job on the same held-out text."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.corpus import Corpus, Packed, pack
from foundry.engine.distill.schedule import sequence_length
from foundry.engine.evaluate.compare import compare
from foundry.engine.models import load_model, load_tokenizer, local_folder
from foundry.engine.workspace import Workspace, write_json
from foundry.intake.checkpoint import context_limit, open_checkpoint
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.variant import Metrics


def evaluate(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Write metrics.json for every target: teacher, corrected, pruned, distilled, lora, as far as they exist.

    Closeness (KL, agreement) is measured to the teacher that the students learn from, the corrected one where it was
    kept. That teacher is scored once for all targets.
    """
    folder = local_folder(workspace.teacher)
    reference = load_model(folder, dtype=context.dtype, device=context.device)
    text = _held_out(spec, workspace, folder, reference)
    shared = _teachers(workspace, folder, reference, text, context)
    for target in spec.target_names:
        path = workspace.stage("evaluate", target) / "metrics.json"
        if path.exists():
            continue
        rows = [*shared]
        for name, student in _students(workspace, target):
            rows.append(_measure(name, student, reference, text, context))
        write_json(path, [row.model_dump(mode="json", exclude_none=True) for row in rows])
        message = f"{target}: held-out loss " + ", ".join(f"{row.model} {row.held_out_loss:.3f}" for row in rows)
        data = [row.model_dump(mode="json", exclude_none=True) for row in rows]
        context.report(EventType.METRICS, message, stage="evaluate", target=target, metrics=data)
    workspace.finish("evaluate", tokens=text.counted_tokens)


def _held_out(spec: JobSpec, workspace: Workspace, folder: Path, teacher: PreTrainedModel) -> Packed:
    tokenizer = load_tokenizer(folder)
    corpus = Corpus.load(workspace.inputs.data, tokenizer, seed=spec.seed)
    length = sequence_length(None, context_limit(teacher.config.to_dict()), "/evaluate")
    return pack(corpus.held_out, tokenizer, length, max_tokens=spec.evaluate.tokens, seed=spec.seed)


def _teachers(
    workspace: Workspace, folder: Path, reference: PreTrainedModel, text: Packed, context: RunContext
) -> list[Metrics]:
    """The teacher, and before it the one it was corrected from."""
    given = local_folder(workspace.inputs.teacher)
    if given == folder:
        return [_row("teacher", folder, reference, None, text, context)]
    return [
        _measure("teacher", given, reference, text, context),
        _row("corrected", folder, reference, None, text, context),
    ]


def _students(workspace: Workspace, target: str) -> Iterator[tuple[str, Path]]:
    for name, stage in (("pruned", "prune"), ("distilled", "distill"), ("lora", "lora")):
        folder = workspace.root / "stages" / stage / target / "model"
        if folder.is_dir():
            yield name, folder


def _measure(name: str, folder: Path, reference: PreTrainedModel, text: Packed, context: RunContext) -> Metrics:
    model = load_model(folder, dtype=context.dtype, device=context.device)
    return _row(name, folder, model, reference, text, context)


def _row(
    name: str,
    folder: Path,
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    text: Packed,
    context: RunContext,
) -> Metrics:
    found = compare(model, reference, text, context)
    checkpoint = open_checkpoint(folder)
    return Metrics(
        model=name, parameters=checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present),
        held_out_loss=found.held_out_loss, perplexity=found.perplexity, bits_per_byte=found.bits_per_byte,
        kl_to_teacher=found.kl_to_teacher, top1_agreement_ratio=found.top1_agreement_ratio, tokens=found.tokens,
    )  # fmt: skip
