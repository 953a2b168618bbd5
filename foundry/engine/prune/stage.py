"""The prune stage: calibrate once, then for every target choose a shape, plan the cut, and write the student."""

from pathlib import Path

import psutil
import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import Corpus, Packed, pack
from foundry.engine.evaluate.compare import compare
from foundry.engine.models import copy_tokenizer, load_model, load_tokenizer, local_folder
from foundry.engine.prune.calibrate import Statistics, bytes_needed, calibrate
from foundry.engine.prune.choose import choose_shape
from foundry.engine.prune.plan import make_plan
from foundry.engine.prune.slicer import Slicer, write_sharded
from foundry.engine.workspace import Workspace, new_folder, write_json
from foundry.errors import InvalidData, OutOfMemory
from foundry.intake.checkpoint import Checkpoint, context_limit, open_checkpoint
from foundry.spec.family import Shape
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.search import shapes_within
from foundry.spec.target import Budget, budgets_of
from foundry.spec.variant import Candidate, PrunePlan

_SEQUENCE_TOKENS = 4096
_CHOICE_TOKENS = 8192
"""Text on which shapes are compared; calibration does not read it."""
_FEWEST_TOKENS = 1024


def prune(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Write plan.json and model/ for every target. Raises `InvalidData` when the data is too short to calibrate on."""
    checkpoint = open_checkpoint(local_folder(workspace.teacher))
    budgets = budgets_of(spec, context_limit(checkpoint.config))
    pending = [b for b in budgets if not (workspace.stage("prune", b.target) / "model").is_dir()]
    shapes = {
        b.target: shapes_within(checkpoint.family, checkpoint.shape, b, spec.prune.axes, checkpoint.present)
        for b in pending
    }
    calibrated: _Calibrated | None = None
    for budget in pending:
        if shapes[budget.target] == [checkpoint.shape]:
            plan, statistics = _keep_all(checkpoint, budget), None
            context.report(
                EventType.STAGE_SKIPPED,
                f"the teacher already fits target {budget.target!r}; nothing is cut",
                stage="prune", target=budget.target,
            )  # fmt: skip
        else:
            calibrated = calibrated or _Calibrated(spec, workspace, checkpoint, context)
            plan, statistics = calibrated.plan(shapes[budget.target], budget), calibrated.statistics
        _write(workspace, checkpoint, plan, statistics, context)
    workspace.finish("prune", targets={b.target: _summary(workspace, b.target) for b in budgets})


class _Calibrated:
    """What all targets share: the loaded teacher, its statistics, and the text on which shapes are compared."""

    def __init__(self, spec: JobSpec, workspace: Workspace, checkpoint: Checkpoint, context: RunContext) -> None:
        self.spec, self.checkpoint, self.context = spec, checkpoint, context
        _refuse_if_too_large(checkpoint.shape, context)
        calibration, self.choice = _texts(spec, workspace, checkpoint)
        self.teacher = load_model(checkpoint.folder, dtype=context.dtype, device=context.device)
        self.statistics = calibrate(self.teacher, checkpoint.family, checkpoint.shape, calibration, context)

    def plan(self, shapes: list[Shape], budget: Budget) -> PrunePlan:
        """Compare shapes by the KL of the repaired cut, and plan the best."""

        def kl(shape: Shape) -> float:
            if self.context.should_stop():
                raise Stopped
            student = self._student(shape)
            score = compare(student, self.teacher, self.choice, self.context).kl_to_teacher
            assert score is not None
            return score

        scored = choose_shape(shapes, self.checkpoint.shape, kl, self.spec.prune.candidates)
        family, present = self.checkpoint.family, self.checkpoint.present
        candidates = tuple(
            Candidate(
                shape=shape,
                parameters=family.parameter_count(shape, present),
                used_bytes=budget.used_bytes(family, shape, present),
                held_out_kl=score,
            )
            for shape, score in scored
        )
        return self._plan(scored[0][0], budget.target).model_copy(update={"candidates": candidates})

    def _plan(self, shape: Shape, target: str) -> PrunePlan:
        checkpoint = self.checkpoint
        return make_plan(checkpoint.family, checkpoint.shape, shape, self.statistics, self.spec.prune.repair, target)

    def _student(self, shape: Shape) -> PreTrainedModel:
        """A student in memory, as it would be read back from disk."""
        slicer = Slicer(
            checkpoint=self.checkpoint, plan=self._plan(shape, "candidate"), statistics=self.statistics,
            device=self.context.device,
        )  # fmt: skip
        return student_in_memory(slicer, self.context)


def student_in_memory(slicer: Slicer, context: RunContext) -> PreTrainedModel:
    """The model that the slicer would write, without the disk."""
    checkpoint = slicer.checkpoint
    config = AutoConfig.for_model(**checkpoint.family.config_for(checkpoint.config, slicer.plan.shape))
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class.from_pretrained(
        None, config=config, state_dict=dict(slicer.tensors()), dtype=context.dtype, attn_implementation="sdpa"
    )
    return model.to(context.device).eval()


def _texts(spec: JobSpec, workspace: Workspace, checkpoint: Checkpoint) -> tuple[Packed, Packed]:
    """Calibration text and, from the other end of the shuffled training documents, text to compare shapes on."""
    tokenizer = load_tokenizer(checkpoint.folder)
    corpus = Corpus.load(Path(workspace.inputs.data), tokenizer, seed=spec.seed)
    length = min(_SEQUENCE_TOKENS, context_limit(checkpoint.config) or _SEQUENCE_TOKENS)
    parameters = checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present)
    wanted = min(spec.prune.calibration_tokens, max(32_768, 16 * parameters // 1000))
    documents = corpus.train
    choice = pack(documents[::-1], tokenizer, length, max_tokens=_CHOICE_TOKENS)
    calibration = pack(documents, tokenizer, length, max_tokens=wanted)
    if calibration.ids_NS.numel() < _FEWEST_TOKENS:
        raise InvalidData(
            f"the data has {calibration.ids_NS.numel():,} tokens; calibration needs {_FEWEST_TOKENS:,}. Add documents"
        )
    return calibration, choice


def _refuse_if_too_large(shape: Shape, context: RunContext) -> None:
    """Say it before the teacher is loaded, not after an hour."""
    needed = bytes_needed(shape)
    if context.device.type == "cuda":
        free = torch.cuda.mem_get_info(context.device)[0]
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise OutOfMemory(
            f"calibrating this teacher takes {needed / 1e9:.1f} GB beside its weights, and {free / 1e9:.1f} GB are "
            "free; use a machine with more memory"
        )


def _keep_all(checkpoint: Checkpoint, budget: Budget) -> PrunePlan:
    shape = checkpoint.shape
    return PrunePlan(
        family=checkpoint.family.name, target=budget.target, teacher_shape=shape, shape=shape,
        layers=tuple(range(shape.layers)), hidden=tuple(range(shape.hidden)),
        ffn=(tuple(range(shape.ffn)),) * shape.layers, heads=(tuple(range(shape.heads)),) * shape.layers,
    )  # fmt: skip


def _write(
    workspace: Workspace, checkpoint: Checkpoint, plan: PrunePlan, statistics: Statistics | None, context: RunContext
) -> None:
    target = workspace.stage("prune", plan.target)
    write_json(target / "plan.json", plan.model_dump(mode="json"))
    slicer = Slicer(checkpoint=checkpoint, plan=plan, statistics=statistics, device=context.device)
    with new_folder(target / "model") as folder:
        copy_tokenizer(checkpoint.folder, folder)
        write_json(folder / "config.json", checkpoint.family.config_for(checkpoint.config, plan.shape))
        write_sharded(slicer.tensors(), folder)


def _summary(workspace: Workspace, target: str) -> dict[str, object]:
    plan = read_plan(workspace, target)
    return {"shape": plan.shape.model_dump(), "teacher_shape": plan.teacher_shape.model_dump(), "repair": plan.repair}


def read_plan(workspace: Workspace, target: str) -> PrunePlan:
    """The plan of a target whose prune stage is done."""
    return PrunePlan.model_validate_json((workspace.stage("prune", target) / "plan.json").read_text(encoding="utf-8"))
