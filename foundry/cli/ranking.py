"""`foundry plan --data`: shapes ranked as a job ranks them, by cutting and measuring each of some."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

from foundry.cli.planning import Measure
from foundry.client.progress import RunProgress
from foundry.errors import MissingExtra, TeacherNotFound
from foundry.intake.checkpoint import INDEX, SINGLE, check_tokenizer, open_checkpoint
from foundry.spec.stages import Axis, Prune
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

_SEED = 0


def ranking_on(teacher: Path, data: Path, axes: tuple[Axis, ...], looks: int) -> Measure:
    """A function that cuts `looks` of the shapes that it is given and measures them.

    Statistics and streams lie in the folder for temporary files (TMPDIR) meanwhile. Raises `MissingExtra` without torch
    and `TeacherNotFound` for a config without weights; the function itself `DamagedCheckpoint` for a teacher without a
    tokenizer, `InvalidData`, and `StorageFull` or `OutOfMemory` where there is no room.
    """
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingExtra(module, "engine")
    if teacher.exists() and not any((teacher / name).exists() for name in (SINGLE, INDEX)):
        raise TeacherNotFound(
            f"{teacher} has no weights to measure; give the model's folder, or leave --data out", pointer="/teacher"
        )

    def measure(shapes: list[Shape], budget: Budget) -> list[tuple[Shape, float]]:
        from foundry.engine.context import RunContext, choose_device, choose_dtype  # late: torch takes seconds
        from foundry.engine.prune.cutting import Cutting
        from foundry.engine.prune.stage import check_room, texts_for
        from foundry.engine.tensors import check_finite

        check_tokenizer(teacher)
        checkpoint, device = open_checkpoint(teacher), choose_device()
        options = Prune(axes=axes, candidates=looks)
        with tempfile.TemporaryDirectory() as scratch, RunProgress() as show:
            context = RunContext(emit=show, device=device, dtype=choose_dtype(device), seed=_SEED)
            texts = texts_for(data, checkpoint, options, _SEED)
            check_finite(checkpoint, context)
            check_room(checkpoint, texts, Path(scratch), context)
            return Cutting(checkpoint, texts, options, Path(scratch), context).rank(shapes, budget.target)

    return measure
