"""By what means students learn: the type they are held in, where their masters lie, whether layers are compiled."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from foundry.engine.compiled import can_compile
from foundry.engine.context import RunContext
from foundry.engine.distill.memory import Room, moments_on_host, shards_fit
from foundry.engine.distill.parallel import Ranks
from foundry.engine.distill.schedule import Schedule
from foundry.errors import OutOfMemory
from foundry.spec.lifecycle import EventType, StageName
from foundry.spec.stages import Distill, OptimizerName

_WORTH_COMPILING = 2e17
"""Operations of a run on each accelerator: some ten minutes on the fastest accelerators, longer on others."""


def held_in(context: RunContext, ranks: Ranks) -> torch.dtype:
    """The type of products, with float32 masters behind the weights; weights in shards are float32 themselves."""
    return context.dtype if ranks.mesh is None else torch.float32


def learns_in_shards(
    stage: StageName, parameters: int, teacher_parameters: int, copies: int, context: RunContext
) -> bool:
    """Whether all accelerators train together; where their memory is too little for that, one does, and it is said.

    One has less of it, but may leave masters and moments in the machine's memory (`learns_on_host`).
    """
    if context.accelerators == 1 or context.device.type != "cuda":
        return context.accelerators > 1
    teacher_bytes = teacher_parameters * context.dtype.itemsize
    if shards_fit(parameters, teacher_bytes, copies, context.accelerators, Room.of(context.device)):
        return True
    message = (
        f"{stage}: shards of {parameters:,} parameters do not fit onto {context.accelerators} accelerators, so one of "
        "them learns, with what it has no room for in the machine's memory"
    )
    context.report(EventType.WARNING, message, level="warning", stage=stage, parameters=parameters)
    return False


def learns_on_host(
    stage: StageName, parameters: int, context: RunContext, *, copies: int = 0, loaded: bool = False,
    optimizer: OptimizerName = "adamw",
) -> bool:  # fmt: skip
    """Whether so many parameters, held in the type of products, learn in the machine's memory, and says so.

    `copies` and `loaded` as in `moments_on_host`. Raises `OutOfMemory` where they do not fit there either, or need an
    optimizer that cannot.
    """
    if context.device.type != "cuda" or context.dtype == torch.float32:
        return False
    if not moments_on_host(parameters, copies, Room.of(context.device), loaded=loaded):
        return False
    if optimizer == "muon":
        raise OutOfMemory(
            f"{stage}: masters and momentum of {parameters:,} parameters do not fit on {context.device}, where Muon "
            f"needs them; choose AdamW ({stage}.optimizer), which can update in the machine's memory, or a machine "
            "with several accelerators"
        )
    message = f"{stage}: masters and moments lie in the machine's memory, for they do not fit on {context.device}"
    context.report(EventType.LOG, message, stage=stage, parameters=parameters)
    return True


def compiles(
    config: Distill, teacher: PreTrainedModel, students: Sequence[PreTrainedModel], schedule: Schedule,
    context: RunContext, ranks: Ranks,
) -> bool:  # fmt: skip
    """As told; by itself where the steps take far longer than compiling does. The same for every attempt at a job."""
    if config.compile is not None or context.device.type != "cuda" or config.hidden is not None:
        return bool(config.compile)
    per_token: int = 2 * teacher.num_parameters() + 6 * sum(student.num_parameters() for student in students)
    operations = per_token * schedule.steps * schedule.batch_tokens
    worth_it = operations / ranks.size > _WORTH_COMPILING and can_compile(context.device)
    return bool(ranks.first_says(float(worth_it)))
