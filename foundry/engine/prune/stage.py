"""The prune stage: calibrate once, then for every target choose a shape, plan the cut, write the student, repair it."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import Corpus, Packed, pack
from foundry.engine.evaluate.compare import compare
from foundry.engine.models import attention_of, copy_tokenizer, load_model, load_tokenizer, local_folder, save_model
from foundry.engine.prune.calibrate import bytes_needed, calibrate
from foundry.engine.prune.choose import choose_layers, choose_shape
from foundry.engine.prune.layers import Layers
from foundry.engine.prune.local import repair_briefly, repair_locally
from foundry.engine.prune.plan import make_plan
from foundry.engine.prune.slicer import Slicer, check_finite, write_sharded
from foundry.engine.workspace import Workspace, new_folder, write_json
from foundry.errors import InvalidData, OutOfMemory
from foundry.intake.checkpoint import Checkpoint, context_limit, open_checkpoint
from foundry.spec.family import Shape
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.search import shapes_within
from foundry.spec.stages import Repair
from foundry.spec.target import Budget, budgets_of
from foundry.spec.variant import Candidate, PrunePlan

_SEQUENCE_TOKENS = 4096
_CHOICE_TOKENS = 8192
"""Text on which shapes are compared; calibration does not read it."""
_DEPTH_TOKENS = 2048
"""The part of it on which sets of layers are compared: there are many, and they differ by much."""
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
    check_finite(checkpoint, context)
    calibrated: _Calibrated | None = None
    for budget in pending:
        if shapes[budget.target] == [checkpoint.shape]:
            context.report(
                EventType.STAGE_SKIPPED,
                f"the teacher already fits target {budget.target!r}; nothing is cut",
                stage="prune", target=budget.target,
            )  # fmt: skip
            _write(workspace, Slicer(
                checkpoint=checkpoint, plan=_keep_all(checkpoint, budget), statistics=None, device=context.device
            ))  # fmt: skip
        else:
            calibrated = calibrated or _Calibrated(spec, workspace, checkpoint, context)
            calibrated.cut(shapes[budget.target], budget, workspace)
    workspace.finish("prune", targets={b.target: _summary(workspace, b.target) for b in budgets})


class _Calibrated:
    """What all targets share: the loaded teacher, its statistics, and the text on which shapes are compared."""

    def __init__(self, spec: JobSpec, workspace: Workspace, checkpoint: Checkpoint, context: RunContext) -> None:
        self.spec, self.checkpoint, self.context = spec, checkpoint, context
        self._layers_of: dict[int, tuple[int, ...]] = {}
        _refuse_if_too_large(checkpoint, context)
        self.calibration, self.choice, self.depth_text = _texts(spec, workspace, checkpoint)
        self.teacher = load_model(checkpoint.folder, dtype=context.dtype, device=context.device)
        self.statistics = calibrate(self.teacher, checkpoint.family, checkpoint.shape, self.calibration, context)

    def cut(self, shapes: list[Shape], budget: Budget, workspace: Workspace) -> None:
        """Choose a shape, plan it, and write the repaired student."""
        slicer = self._slicer(self._plan(shapes, budget))
        if "local" not in slicer.plan.repair:
            _write(workspace, slicer)
            return
        sliced = workspace.stage("prune", budget.target) / "sliced"
        _write(workspace, slicer, sliced)
        student = student_in_memory(slicer, self.context, dtype=torch.float32)
        errors = repair_locally(
            student, self.teacher, self.checkpoint.family, slicer.plan, slicer.axes_HD, self.calibration, self.context,
            epochs=self.spec.prune.local_epochs,
        )  # fmt: skip
        said = ", ".join(f"{before:.3f} to {after:.3f}" for before, after in errors)
        self.context.report(
            EventType.LOG, f"{budget.target}: error of each layer before and after its repair: {said}",
            stage="prune", target=budget.target, errors=errors,
        )  # fmt: skip
        save_model(student, like=sliced, folder=sliced.with_name("model"))
        shutil.rmtree(sliced)

    def _plan(self, shapes: list[Shape], budget: Budget) -> PrunePlan:
        """Compare shapes by the KL of the repaired cut, the local repair being a brief one, and plan the best."""
        checkpoint, family = self.checkpoint, self.checkpoint.family
        scored = choose_shape(
            shapes, checkpoint.shape, lambda shape: self._kl(self._planned(shape)), self.spec.prune.candidates
        )
        candidates = tuple(
            Candidate(
                shape=shape,
                parameters=family.parameter_count(shape, checkpoint.present),
                used_bytes=budget.used_bytes(family, shape, checkpoint.present),
                held_out_kl=score,
            )
            for shape, score in scored
        )
        shape, score = scored[0]
        plan = self._planned(shape)
        if plan.rotated and not family.exactly_rotatable:
            # Behind a post norm the turn holds on average only; where the average is a bad guess, cutting by index is
            # the better start.
            by_index = self._planned(shape, without="rotate")
            plan = by_index if self._kl(by_index) < score else plan
        return plan.model_copy(update={"candidates": candidates, "target": budget.target})

    def _planned(self, shape: Shape, without: Repair | None = None) -> PrunePlan:
        checkpoint = self.checkpoint
        repairs = tuple(repair for repair in self.spec.prune.repair if repair != without)
        layers = self._kept_layers(shape.layers)
        return make_plan(checkpoint.family, checkpoint.shape, shape, self.statistics, repairs, "candidate", layers)

    def _kept_layers(self, count: int) -> tuple[int, ...]:
        """The layers with which alone the teacher predicts best; looked for once for each number of layers."""
        if count == self.checkpoint.shape.layers:
            return tuple(range(count))
        if count not in self._layers_of:
            layers = Layers(self.teacher, self.checkpoint.family, self.checkpoint.shape.layers)

            def loss(kept: tuple[int, ...]) -> float:
                if self.context.should_stop():
                    raise Stopped
                with layers.only(kept):
                    return compare(self.teacher, None, self.depth_text, self.context).held_out_loss

            self._layers_of[count], _ = choose_layers(self.statistics.distance_L.tolist(), count, loss)
        return self._layers_of[count]

    def _kl(self, plan: PrunePlan) -> float:
        if self.context.should_stop():
            raise Stopped
        slicer = self._slicer(plan)
        if "local" in plan.repair:
            student = student_in_memory(slicer, self.context, dtype=torch.float32)
            repair_briefly(
                student, self.teacher, self.checkpoint.family, plan, slicer.axes_HD, self.calibration, self.context
            )
            student = student.to(self.context.dtype)
        else:
            student = student_in_memory(slicer, self.context)
        score = compare(student, self.teacher, self.choice, self.context).kl_to_teacher
        assert score is not None
        return score

    def _slicer(self, plan: PrunePlan) -> Slicer:
        return Slicer(checkpoint=self.checkpoint, plan=plan, statistics=self.statistics, device=self.context.device)


def student_config(slicer: Slicer) -> dict[str, Any]:
    """The student's config.json. A setting of every layer that the teacher's config leaves to its class is said."""
    checkpoint, plan = slicer.checkpoint, slicer.plan
    config = dict(checkpoint.config)
    if unsaid := [key for key in checkpoint.family.config_lists if key not in config]:
        assumed = AutoConfig.for_model(**deepcopy(config))  # it writes into the rope settings
        config |= {key: getattr(assumed, key) for key in unsaid if getattr(assumed, key, None)}
    return checkpoint.family.config_for(config, plan.shape, plan.layers)


def student_in_memory(slicer: Slicer, context: RunContext, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model that the slicer would write, without the disk."""
    config = AutoConfig.for_model(**student_config(slicer))
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class.from_pretrained(
        None, config=config, state_dict=dict(slicer.tensors()), dtype=dtype or context.dtype,
        attn_implementation=attention_of(config),
    )  # fmt: skip
    return model.to(context.device).eval()


def _texts(spec: JobSpec, workspace: Workspace, checkpoint: Checkpoint) -> tuple[Packed, Packed, Packed]:
    """Calibration text and, from the other end of the shuffled documents, text to compare shapes and depths on."""
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
    return calibration, choice, pack(documents[::-1], tokenizer, length, max_tokens=_DEPTH_TOKENS)


def _refuse_if_too_large(checkpoint: Checkpoint, context: RunContext) -> None:
    """Say it before the teacher is loaded, not after an hour."""
    needed = bytes_needed(checkpoint.family, checkpoint.shape)
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
        ffn=(tuple(range(shape.ffn)),) * (shape.layers * max(1, shape.experts)),
        heads=(tuple(range(shape.heads)),) * shape.layers,
    )  # fmt: skip


def _write(workspace: Workspace, slicer: Slicer, folder: Path | None = None) -> None:
    """The plan, and the student as it is cut, in `folder` or under its final name."""
    target = workspace.stage("prune", slicer.plan.target)
    write_json(target / "plan.json", slicer.plan.model_dump(mode="json"))
    with new_folder(folder or target / "model") as aside:
        copy_tokenizer(slicer.checkpoint.folder, aside)
        write_json(aside / "config.json", student_config(slicer))
        write_sharded(slicer.tensors(), aside)


def _summary(workspace: Workspace, target: str) -> dict[str, object]:
    plan = read_plan(workspace, target)
    return {"shape": plan.shape.model_dump(), "teacher_shape": plan.teacher_shape.model_dump(), "repair": plan.repair}


def read_plan(workspace: Workspace, target: str) -> PrunePlan:
    """The plan of a target whose prune stage is done."""
    return PrunePlan.model_validate_json((workspace.stage("prune", target) / "plan.json").read_text(encoding="utf-8"))
