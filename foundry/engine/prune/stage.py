"""The prune stage: calibrate once, then for every target choose a shape, plan the cut, grow the repaired student."""

import shutil
from pathlib import Path

import psutil
import torch

from foundry.engine.context import RunContext
from foundry.engine.corpus import Corpus, pack
from foundry.engine.evaluate.importance import NAME as IMPORTANCE
from foundry.engine.evaluate.importance import gathered
from foundry.engine.models import copy_tokenizer, load_tokenizer, local_folder
from foundry.engine.prune.cutting import Cutting
from foundry.engine.prune.slicer import Slicer
from foundry.engine.prune.statistics import bytes_of_layer
from foundry.engine.prune.texts import CHOICE_TOKENS, Texts
from foundry.engine.tensors import check_finite, write_sharded
from foundry.engine.workspace import Workspace, new_folder, publish, write_json
from foundry.errors import InvalidData, OutOfMemory, StorageFull
from foundry.intake.checkpoint import Checkpoint, context_limit, open_checkpoint
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.search import shapes_within
from foundry.spec.stages import Prune
from foundry.spec.target import Budget, budgets_of
from foundry.spec.variant import PrunePlan
from foundry.spec.weights import Shape

_SEQUENCE_TOKENS = 4096
_FEWEST_TOKENS = 1024


def prune(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Write plan.json and model/ for every target. Raises `InvalidData` when the data is too short to calibrate on."""
    checkpoint = open_checkpoint(local_folder(workspace.teacher))
    budgets = budgets_of(spec, context_limit(checkpoint.config))
    pending = [b for b in budgets if not (workspace.stage("prune", b.target) / "model").is_dir()]
    shapes = {
        b.target: shapes_within(
            checkpoint.family, checkpoint.shape, b, spec.prune.axes, checkpoint.present, spec.formats
        )
        for b in pending
    }
    check_finite(checkpoint, context)
    scratch = workspace.stage("prune") / ".scratch"
    cutting: Cutting | None = None
    for budget in pending:
        if shapes[budget.target] == [checkpoint.shape]:
            context.report(
                EventType.STAGE_SKIPPED,
                f"the teacher already fits target {budget.target!r}; nothing is cut",
                stage="prune", target=budget.target,
            )  # fmt: skip
            _write_whole(workspace, Slicer(
                checkpoint=checkpoint, plan=_keep_all(checkpoint, budget), statistics=None, device=context.device
            ))  # fmt: skip
            continue
        if cutting is None:
            texts = texts_for(Path(workspace.inputs.data), checkpoint, spec.prune, spec.seed)
            check_room(checkpoint, texts, scratch, context)
            cutting = Cutting(checkpoint, texts, spec.prune, scratch, context)
            write_json(workspace.stage("prune") / IMPORTANCE, gathered(cutting.statistics, checkpoint.shape))
        _cut(cutting, shapes[budget.target], budget, workspace)
    shutil.rmtree(scratch, ignore_errors=True)
    workspace.finish("prune", targets={b.target: _summary(workspace, b.target) for b in budgets})


def _cut(cutting: Cutting, shapes: list[Shape], budget: Budget, workspace: Workspace) -> None:
    """Choose a shape, plan it, and write the repaired student."""
    target = workspace.stage("prune", budget.target)
    if not (target / "plan.json").exists():
        write_json(target / "plan.json", cutting.choose(shapes, budget).model_dump(mode="json"))
    plan = read_plan(workspace, budget.target)
    growing = target / ".growing"
    growing.mkdir(exist_ok=True)
    errors, kl = cutting.grow(plan, growing)
    _write_settings(cutting.slicer(plan), growing)
    said = f"{budget.target}: KL {kl:.4f} nats per token after the cut"
    if "local" in plan.repair:
        said += "; error of each layer before and after its repair, of the last one its KL: "
        said += ", ".join(f"{before:.3f} to {after:.3f}" for before, after in errors)
    family, present = cutting.checkpoint.family, cutting.checkpoint.present
    if carrier := family.carried_by(plan.shape, present):
        said += (
            f"; saved as {carrier.architecture}, which computes the same and takes a hidden that heads do not divide"
        )
    cutting.context.report(
        EventType.LOG, said, stage="prune", target=budget.target, errors=errors, held_out_kl=kl
    )  # fmt: skip
    publish(growing, target / "model")
    cutting.forget(budget.target)


def texts_for(data: Path, checkpoint: Checkpoint, options: Prune, seed: int) -> Texts:
    """Text to calibrate on, and other text of the same documents to compare shapes and depths on.

    Raises `InvalidData` when the data is too short to calibrate on.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    corpus = Corpus.load(data, tokenizer, seed=seed)
    length = min(_SEQUENCE_TOKENS, context_limit(checkpoint.config) or _SEQUENCE_TOKENS)
    parameters = checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present)
    wanted = min(options.calibration_tokens, max(32_768, 16 * parameters // 1000))
    # From the end, because distillation reads from the beginning: from text that the local repair has already learned a
    # student learns little more. And more than is used: where prompts are longer than a row, rows without a token that
    # counts are left out.
    pool = pack(corpus.train[::-1], tokenizer, length, max_tokens=wanted + wanted // 4 + 2 * CHOICE_TOKENS, seed=seed)
    texts = Texts.split(pool, wanted)
    if texts.tokens < _FEWEST_TOKENS:
        raise InvalidData(f"the data has {texts.tokens:,} tokens; calibration needs {_FEWEST_TOKENS:,}. Add documents")
    return texts


def check_room(checkpoint: Checkpoint, texts: Texts, scratch: Path, context: RunContext) -> None:
    """Say that memory or disk is too small before the work, not after an hour. Both are estimates from below.

    What a stage that is resumed has already written into `scratch` is not asked for again.
    """
    family, shape = checkpoint.family, checkpoint.shape
    statistics = bytes_of_layer(family, shape)
    outside = family.parameter_count(shape.model_copy(update={"layers": 0}), checkpoint.present)
    layer = (family.parameter_count(shape, checkpoint.present) - outside) // shape.layers
    # Both heads; as much is an embedding and the copy of it that a model takes.
    ends = 2 * shape.vocab * shape.hidden * context.dtype.itemsize
    # A layer that learns has three float32 values for each weight and what it was before; the last one lies beside both
    # heads, but for a CPU, which leaves them in files.
    learning = 14 * layer + (ends if context.device.type != "cpu" else 0)
    memory = max(learning, ends, 4 * layer + 3 * statistics)
    if memory > (free := _free_memory(context.device)):
        raise OutOfMemory(
            f"pruning one layer of this teacher takes {memory / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; use a "
            "machine with more memory"
        )
    streams = 3 * texts.packed.ids_NS.numel() * shape.hidden * context.dtype.itemsize
    held = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    disk = shape.layers * statistics + streams - held
    scratch.mkdir(parents=True, exist_ok=True)
    if disk > (free := shutil.disk_usage(scratch).free):
        raise StorageFull(
            f"pruning keeps {disk / 1e9:.1f} GB of statistics and streams in {scratch}, where {free / 1e9:.1f} GB are "
            "free; make room and start it again"
        )


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what earlier stages have left with the allocator is free too
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _keep_all(checkpoint: Checkpoint, budget: Budget) -> PrunePlan:
    shape = checkpoint.shape
    return PrunePlan(
        family=checkpoint.family.name, target=budget.target, teacher_shape=shape, shape=shape,
        layers=tuple(range(shape.layers)), hidden=tuple(range(shape.hidden)),
        ffn=(tuple(range(shape.ffn)),) * (shape.layers * max(1, shape.experts)),
        heads=(tuple(range(shape.heads)),) * shape.layers,
    )  # fmt: skip


def _write_whole(workspace: Workspace, slicer: Slicer) -> None:
    """A plan that cuts nothing, and the teacher as it is under the student's name."""
    target = workspace.stage("prune", slicer.plan.target)
    write_json(target / "plan.json", slicer.plan.model_dump(mode="json"))
    with new_folder(target / "model") as aside:
        _write_settings(slicer, aside)
        write_sharded(slicer.tensors(), slicer.entries(), aside)


def _write_settings(slicer: Slicer, folder: Path) -> None:
    copy_tokenizer(slicer.checkpoint.folder, folder)
    write_json(folder / "config.json", slicer.config())


def _summary(workspace: Workspace, target: str) -> dict[str, object]:
    plan = read_plan(workspace, target)
    return {"shape": plan.shape.model_dump(), "teacher_shape": plan.teacher_shape.model_dump(), "repair": plan.repair}


def read_plan(workspace: Workspace, target: str) -> PrunePlan:
    """The plan of a target whose prune stage is done."""
    return PrunePlan.model_validate_json((workspace.stage("prune", target) / "plan.json").read_text(encoding="utf-8"))
