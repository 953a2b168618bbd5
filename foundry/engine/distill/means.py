"""By what means students learn: the type they are held in, where their masters lie, whether layers are compiled."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from foundry.engine.compiled import can_compile
from foundry.engine.context import RunContext
from foundry.engine.distill.memory import Room, fits_in_shards, moments_on_host, total_bytes
from foundry.engine.distill.parallel import Ranks
from foundry.engine.distill.schedule import Schedule
from foundry.errors import OutOfMemory
from foundry.spec.family import families
from foundry.spec.lifecycle import EventType, StageName
from foundry.spec.stages import Distill, OptimizerName
from foundry.spec.variant import PrunePlan

_WORTH_COMPILING = 2e17
"""Operations of a run on each accelerator: some ten minutes on the fastest accelerators, longer on others."""


def held_in(context: RunContext, ranks: Ranks) -> torch.dtype:
    """The type of products, with float32 masters behind the weights; weights in shards are float32 themselves."""
    return context.dtype if ranks.mesh is None else torch.float32


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
            "with more accelerators"
        )
    message = f"{stage}: masters and moments lie in the machine's memory, for they do not fit on {context.device}"
    context.report(EventType.LOG, message, stage=stage, parameters=parameters)
    return True


def copies_of(config: Distill) -> int:
    """Of a student's weights, beside those that learn: their average, the best so far."""
    return (config.ema_decay is not None) + (config.patience_looks is not None)


def learns_in_shards(plans: Sequence[PrunePlan], config: Distill, context: RunContext) -> bool:
    """Whether students of these plans learn on all accelerators, and says so where shards of them do not fit.

    Shards lie on accelerators alone and in float32; one accelerator with masters in the machine's memory may hold more.
    """
    if context.accelerators == 1 or context.device.type != "cuda":
        return context.accelerators > 1
    teacher, *students = (
        families()[plans[0].family].parameter_count(shape)
        for shape in (plans[0].teacher_shape, *(plan.shape for plan in plans))
    )
    if config.signal != "live":
        teacher = 0  # gone before anything is learned
    state = (4 if config.optimizer == "muon" else 8) + 4 * copies_of(config)
    whole = max(plan.shape.vocab * plan.shape.hidden for plan in plans)
    if fits_in_shards(teacher, sum(students), whole, state, total_bytes(context.device), context.accelerators):
        return True
    message = (
        f"distill: shards of {sum(students):,} parameters that learn, and of their teacher, do not fit on "
        f"{context.accelerators} accelerators, so one takes them alone"
    )
    context.report(EventType.WARNING, message, level="warning", stage="distill", processes=1)
    return False


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
    return ranks.averaged([float(worth_it)]) == [1.0]
