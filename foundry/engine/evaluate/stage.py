"""The evaluate stage: every model of a job on the same held-out text."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.distill.schedule import sequence_length
from foundry.engine.evaluate.benchmarks import run_benchmarks
from foundry.engine.evaluate.examine import Examined, Examiner
from foundry.engine.evaluate.held_out import HeldOut, read_held_out
from foundry.engine.evaluate.importance import NAME, importance
from foundry.engine.models import load_model, load_tokenizer, local_folder
from foundry.engine.workspace import Workspace, read_json, write_json
from foundry.intake.checkpoint import context_limit, open_checkpoint
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, Progress


def evaluate(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Measure every model of a job on the same text, and run the benchmarks of its suite.

    Raises `InvalidData` when no held-out token counts, and `Stopped`.
    """
    figures = _compare(spec, workspace, context)
    run_benchmarks(spec, workspace, context)  # the teacher of the comparison is out of memory by now
    workspace.finish("evaluate", **figures)


def _compare(spec: JobSpec, workspace: Workspace, context: RunContext) -> dict[str, int]:
    """Write metrics.json and samples.json for every target: teacher, corrected, pruned, distilled, lora, as they exist.

    Closeness (KL, agreement) is measured to the teacher that the students learn from, the corrected one where it was
    kept. That teacher is scored once for all targets. leaks.json names the held-out documents that were trained on,
    importance.json says where in the teacher the work is done.
    """
    folder = local_folder(workspace.teacher)
    reference = load_model(folder, dtype=context.dtype, device=context.device)
    tokenizer = load_tokenizer(folder)
    length = sequence_length(None, context_limit(reference.config.to_dict()), "/evaluate")
    text = read_held_out(workspace.inputs.data, tokenizer, length, spec.evaluate, context)
    write_json(workspace.stage("evaluate") / "leaks.json", [asdict(leak) for leak in text.leaks])
    _write_importance(workspace, folder, reference, text, context)
    examiner = Examiner(reference, tokenizer, text, context)
    pending = [t for t in spec.target_names if not (workspace.stage("evaluate", t) / "metrics.json").exists()]
    shared = _teachers(workspace, folder, examiner, context) if pending else []
    students = {target: dict(_students(workspace, target)) for target in pending}
    step, steps = len(shared), len(shared) + sum(map(len, students.values()))
    for target in pending:
        models = dict(shared)
        for name, student in students[target].items():
            models[name] = _examined(name, student, examiner, context)
            step += 1
            context.progress(Progress(stage="evaluate", step=step, steps=steps))
        _write(workspace, target, models, text, context)
    return {
        "tokens": text.packed.counted_tokens, "documents": text.documents, "leaked_documents": len(text.leaks)
    }  # fmt: skip


def _write(workspace: Workspace, target: str, models: dict[str, Examined], text: HeldOut, context: RunContext) -> None:
    """samples.json, and metrics.json last: where it stands the target is done."""
    folder = workspace.stage("evaluate", target)
    samples = [
        {
            "key": prompt.key, "prompt": prompt.text, "reference": prompt.reference,
            "answers": {name: examined.samples[place] for name, examined in models.items()},
        }
        for place, prompt in enumerate(text.samples)
    ]  # fmt: skip
    write_json(folder / "samples.json", samples)
    rows = [examined.row for examined in models.values()]
    data = [row.model_dump(mode="json", exclude_none=True) for row in rows]
    write_json(folder / "metrics.json", data)
    message = f"{target}: held-out loss " + ", ".join(f"{row.model} {row.held_out_loss:.3f}" for row in rows)
    context.report(EventType.METRICS, message, stage="evaluate", target=target, metrics=data)


def _write_importance(
    workspace: Workspace, folder: Path, teacher: PreTrainedModel, text: HeldOut, context: RunContext
) -> None:
    path, known = workspace.stage("evaluate") / NAME, workspace.stage("prune") / NAME
    if path.exists():
        return
    if known.exists():
        write_json(path, read_json(known))
    else:
        checkpoint = open_checkpoint(folder)
        write_json(path, importance(teacher, checkpoint.family, checkpoint.shape, text.packed, context))


def _teachers(
    workspace: Workspace, folder: Path, examiner: Examiner, context: RunContext
) -> list[tuple[str, Examined]]:
    """The teacher, and before it the one it was corrected from."""
    given = local_folder(workspace.inputs.teacher)
    if given == folder:
        return [("teacher", examiner.reference("teacher", folder))]
    corrected = examiner.reference("corrected", folder)
    return [("teacher", _examined("teacher", given, examiner, context)), ("corrected", corrected)]


def _students(workspace: Workspace, target: str) -> Iterator[tuple[str, Path]]:
    for name, stage in (("pruned", "prune"), ("distilled", "distill"), ("lora", "lora")):
        folder = workspace.root / "stages" / stage / target / "model"
        if folder.is_dir():
            yield name, folder


def _examined(name: str, folder: Path, examiner: Examiner, context: RunContext) -> Examined:
    return examiner.model(name, folder, load_model(folder, dtype=context.dtype, device=context.device))
