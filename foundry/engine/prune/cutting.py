"""A teacher opened for cutting: calibrated once, then shapes compared and students made."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundry.engine.context import RunContext
from foundry.engine.prune.calibrate import Calibration
from foundry.engine.prune.choose import choose_shape
from foundry.engine.prune.depth import choose_layers, losses_with
from foundry.engine.prune.grow import Errors, Growth, Lesson
from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.plan import make_plan
from foundry.engine.prune.slicer import Slicer
from foundry.engine.prune.teacher import TeacherStreams
from foundry.engine.prune.texts import Texts
from foundry.engine.tensors import CheckpointWriter, Reader
from foundry.engine.workspace import read_json, write_json
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.lifecycle import EventType
from foundry.spec.stages import Prune, Repair
from foundry.spec.target import Budget
from foundry.spec.variant import Candidate, PrunePlan
from foundry.spec.weights import Shape

_MADE = "made.json"


class Cutting:
    """Statistics, choices and streams live in `scratch`, where a cutting that was stopped is taken up again."""

    def __init__(
        self, checkpoint: Checkpoint, texts: Texts, options: Prune, scratch: Path, context: RunContext
    ) -> None:
        """Calibrates. Raises `DamagedCheckpoint` for weights that give no numbers, `Stopped` when asked to stop."""
        self.checkpoint, self.texts, self._options = checkpoint, texts, options
        self._scratch, self.context = scratch, context
        made = _how_made(checkpoint, texts, options, context)
        if not _was_made_so(scratch, made):
            _clear(scratch, made)
        read = Reader(checkpoint, context.device)
        self.teacher = StreamedModel(
            checkpoint.config, checkpoint.family, checkpoint.shape, checkpoint.present, lambda place: read(place.name),
            device=context.device, dtype=context.dtype,
        )  # fmt: skip
        self.calibration = Calibration(self.teacher, texts, scratch / "calibration", context)
        self.statistics = self.calibration.run()

    def choose(self, shapes: Sequence[Shape], budget: Budget) -> PrunePlan:
        """Compare shapes by the KL of the repaired cut, the local repair being a brief one, and plan the best."""
        checkpoint, family = self.checkpoint, self.checkpoint.family
        scored = self.rank(shapes, budget.target)
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
        repairs, score = self.settle(shape, score, budget.target)
        candidates = (candidates[0].model_copy(update={"held_out_kl": score}), *candidates[1:])
        plan = self.plan(shape, repairs)
        return plan.model_copy(update={"candidates": candidates, "target": budget.target})

    def settle(self, shape: Shape, score: float, said: str) -> tuple[tuple[Repair, ...], float]:
        """The repairs that this shape keeps, and its KL with them; `score` is that with all of them.

        Some help at one model and shape and harm at another, so that each of those is tried without.
        """
        repairs = self._options.repair
        for doubtful in self._doubtful(self.plan(shape)):
            others = tuple(repair for repair in repairs if repair != doubtful)
            found = self.score(shape, said=f"{said}, without {doubtful}", repairs=others)
            if found < score:
                repairs, score = others, found
        return repairs, score

    def _doubtful(self, plan: PrunePlan) -> list[Repair]:
        found: list[Repair] = []
        if plan.rotated and not self.checkpoint.family.exactly_rotatable:
            found.append("rotate")  # behind a post norm the turn holds on average only
        if "rescale" in plan.repair and plan.shape.hidden < plan.teacher_shape.hidden:
            found.append("rescale")  # its gain is a mean over tokens, too, and counts the same for all of them
        return found

    def rank(self, shapes: Sequence[Shape], said: str) -> list[tuple[Shape, float]]:
        """The shapes that were looked at, with their KL, best first; `said` is whose they are, for the log."""
        return choose_shape(
            shapes, self.checkpoint.shape, lambda shape: self.score(shape, said=said), self._options.candidates
        )

    def score(self, shape: Shape, *, said: str, repairs: tuple[Repair, ...] | None = None) -> float:
        """KL to the teacher right after the cut and a brief repair, nats per token; measured once for each shape.

        With all of the job's repairs where none are named.
        """

        def measure() -> float:
            self.context.heed()
            folder = self._scratch / "candidate"
            shutil.rmtree(folder, ignore_errors=True)
            plan = self.plan(shape, repairs)
            lesson = Lesson(rows=self.texts.brief, goals=self.calibration.brief, epochs=1)
            silent = replace(self.context, emit=lambda event: None)
            growth = Growth(self.slicer(plan), self.calibration, self._if_local(plan, lesson), folder, silent)
            growth.run()
            found = growth.kl()
            self.context.report(
                EventType.LOG, f"{said}: {shape.in_words}: KL {found:.4f} nats per token right after the cut",
                stage="prune", shape=shape.model_dump(), held_out_kl=found,
            )  # fmt: skip
            shutil.rmtree(folder)
            return found

        key = json.dumps([shape.model_dump(), repairs])
        return float(self._remembered("scores", key, measure))

    def plan(self, shape: Shape, repairs: tuple[Repair, ...] | None = None) -> PrunePlan:
        """Which indices stay for this shape."""
        repairs = self._options.repair if repairs is None else repairs
        layers = self._kept_layers(shape.layers)
        family, teacher = self.checkpoint.family, self.checkpoint.shape
        return make_plan(family, teacher, shape, self.statistics, repairs, "candidate", layers)

    def slicer(self, plan: PrunePlan) -> Slicer:
        return Slicer(
            checkpoint=self.checkpoint, plan=plan, statistics=self.statistics, device=self.context.device,
            dtype_of_products=self.context.dtype,
        )  # fmt: skip

    def grow(self, plan: PrunePlan, folder: Path) -> tuple[Errors, float]:
        """Write the student's weights into `folder`; return its layers' errors and its KL on the choice.

        A growth that was stopped is taken up from the same folder.
        """
        slicer = self.slicer(plan)
        scratch = self._growing(plan.target)
        made = {"plan": plan.model_dump(mode="json")}
        if not any(folder.glob("model*.safetensors")) or not _was_made_so(scratch, made):
            _clear(scratch, made)  # streams without the weights that belong to them
        goals = TeacherStreams(self.teacher, self.texts, scratch, self.context)
        lesson = Lesson(rows=self.texts.calibration, goals=goals.before, epochs=self._options.local_epochs)
        with CheckpointWriter(folder, slicer.entries()) as writer:
            growth = Growth(slicer, self.calibration, self._if_local(plan, lesson), scratch, self.context, writer)
            errors = growth.run()
            return errors, growth.kl()

    def forget(self, target: str) -> None:
        """Remove the streams of a student that is complete."""
        shutil.rmtree(self._growing(target), ignore_errors=True)

    def _growing(self, target: str) -> Path:
        return self._scratch / f"growing-{target}"

    @staticmethod
    def _if_local(plan: PrunePlan, lesson: Lesson) -> Lesson | None:
        return lesson if "local" in plan.repair else None

    def _kept_layers(self, count: int) -> tuple[int, ...]:
        """The layers with which alone the teacher predicts best; looked for once for each number of layers."""
        if count == self.checkpoint.shape.layers:
            return tuple(range(count))

        def measure() -> list[int]:
            def losses(sets: Sequence[tuple[int, ...]]) -> list[float]:
                return losses_with(self.teacher, self.texts, sets, self.context)

            return list(choose_layers(self.statistics.distance_L.tolist(), count, losses)[0])

        return tuple(self._remembered("layers", str(count), measure))

    def _remembered(self, name: str, key: str, measure: Callable[[], Any]) -> Any:
        """A measurement, from `scratch` where it was already made."""
        path = self._scratch / f"{name}.json"
        known = read_json(path) if path.exists() else {}
        if key not in known:
            known[key] = measure()
            write_json(path, known)
        return known[key]


def _how_made(checkpoint: Checkpoint, texts: Texts, options: Prune, context: RunContext) -> dict[str, Any]:
    """What everything in `scratch` depends on; streams are files of bare numbers and say nothing of themselves."""
    digest = hashlib.sha256()
    for tensor in (texts.packed.ids_NS, texts.packed.positions_NS, texts.packed.targets_NS):
        digest.update(tensor.contiguous().numpy().tobytes())
    files = sorted({entry.file for entry in checkpoint.tensors.values()})
    return {
        "format": 3, "dtype": str(context.dtype), "device": context.device.type, "seed": context.seed,
        "text": digest.hexdigest(), "calibration_rows": texts.calibration_rows,
        "options": options.model_dump(mode="json"),
        "teacher": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }  # fmt: skip


def _was_made_so(folder: Path, made: dict[str, Any]) -> bool:
    path = folder / _MADE
    return path.exists() and bool(read_json(path) == made)


def _clear(folder: Path, made: dict[str, Any]) -> None:
    """Empty it, its description first, so that what is left of a clearing cut short is not trusted."""
    (folder / _MADE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _MADE, made)
