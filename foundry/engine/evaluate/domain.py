"""The entry for whoever wants any model or variant measured on a customer's data, outside of a job."""

from pathlib import Path

from foundry.engine.context import RunContext
from foundry.engine.distill.schedule import sequence_length
from foundry.engine.evaluate.examine import Examiner
from foundry.engine.evaluate.held_out import read_held_out
from foundry.engine.evaluate.locate import find_model
from foundry.engine.models import load_model, load_tokenizer
from foundry.intake.checkpoint import context_limit, open_checkpoint
from foundry.spec.stages import Evaluate
from foundry.spec.variant import Metrics


def evaluate_on(
    model: str | Path, data: Path, context: RunContext, *, teacher: str | Path | None = None, tokens: int = 65_536
) -> list[Metrics]:
    """One row for the model, or one for its teacher and one for the model, on the held-out side of `data`.

    It is the side that a job on the same data holds out, so that a variant is never asked what it has learned. Without
    a teacher there is loss, without closeness. Raises `InvalidData`, `TeacherNotFound`, `DamagedCheckpoint` (also when
    the vocabularies differ), and `Stopped`.
    """
    folder, name = find_model(model)
    base, base_name = find_model(teacher) if teacher is not None else (folder, name)
    open_checkpoint(base)
    reference = load_model(base, dtype=context.dtype, device=context.device)
    tokenizer = load_tokenizer(base)
    length = sequence_length(None, context_limit(reference.config.to_dict()), "/data")
    text = read_held_out(data, tokenizer, length, Evaluate(tokens=tokens, samples=0), context)
    examiner = Examiner(reference, tokenizer, text, context)
    rows = [examiner.reference(base_name, base).row]
    if teacher is not None:
        open_checkpoint(folder)
        student = load_model(folder, dtype=context.dtype, device=context.device)
        rows.append(examiner.model(name, folder, student).row)
    return rows
