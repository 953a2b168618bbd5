"""Whether distillation has helped a student."""

from pathlib import Path

from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.distill.trainer import History, summary
from foundry.engine.evaluate.compare import compare
from foundry.engine.models import load_model
from foundry.engine.packed import Packed
from foundry.spec.lifecycle import EventType
from foundry.spec.stages import Distill


def has_helped(
    target: str, history: History, trained: PreTrainedModel, cut: Path, teacher: Path, held_out: Packed,
    config: Distill, context: RunContext,
) -> bool:  # fmt: skip
    """False, with a warning, for a student that predicts held-out text worse than it was cut and follows its teacher no
    better.

    Teacher and cut student are opened only where the text alone speaks against the trained one. By reverse KL it may be
    worse: who asks for that wants the likeliest, not everything.
    """
    said = summary(history)
    before, after = said["held_out_loss_before"], said["held_out_loss_after"]
    if after <= before or config.loss == "reverse_kl":
        return True
    guide = load_model(teacher, dtype=context.dtype, device=context.device)
    was = load_model(cut, dtype=context.dtype, device=context.device)
    now_kl, was_kl = (compare(model.eval(), guide, held_out, context).kl_to_teacher or 0.0 for model in (trained, was))
    if now_kl < was_kl:
        return True
    message = (
        f"distill: {history['steps']:,} steps took the held-out loss of {target!r} from {before:.4f} to {after:.4f} "
        f"nats per token and its KL to the teacher from {was_kl:.4f} to {now_kl:.4f}, so it is shipped as it was cut "
        f"and repaired; give more text (distill.tokens) or lower distill.learning_rate (it peaks at "
        f"{config.learning_rate:.3g})"
    )
    context.report(EventType.WARNING, message, level="warning", stage="distill", target=target, kept=False)
    return False
