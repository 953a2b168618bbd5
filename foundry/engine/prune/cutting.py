"""A teacher opened for cutting: calibrated once, then shapes compared and students made."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundry.engine.context import RunContext, Stopped
from foundry.engine.prune.calibrate import Calibration
from foundry.engine.prune.choose import choose_shape
from foundry.engine.prune.depth import choose_layers, losses_with
from foundry.engine.prune.grow import Errors, Growth, Lesson, TeacherStreams
from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.plan import make_plan
from foundry.engine.prune.slicer import Slicer
from foundry.engine.prune.texts import Texts
from foundry.engine.tensors import CheckpointWriter, Reader
from foundry.engine.workspace import read_json, write_json
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.lifecycle import EventType
from foundry.spec.stages import Prune, Repair
from foundry.spec.target import Budget
from foundry.spec.variant import Candidate, PrunePlan
from foundry.spec.weights import Shape


class Cutting:
    """Statistics, choices and half-grown students live in `scratch`, where a cutting that was stopped is taken up."""

    def __init__(
        self, checkpoint: Checkpoint, texts: Texts, options: Prune, scratch: Path, context: RunContext
    ) -> None:
        """Calibrates. Raises `DamagedCheckpoint` for weights that give no numbers, `Stopped` when asked to stop."""
        self.checkpoint, self.texts, self._options = checkpoint, texts, options
        self._scratch, self.context = scratch, context
        _clear_if_made_otherwise(scratch, texts, context)
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
        plan = self.plan(shape)
        if plan.rotated and not family.exactly_rotatable:
            # Behind a post norm the turn holds on average only; where the average is a bad guess, cutting by index is
            # the better start.
            by_index = self.score(shape, said=f"{budget.target}, not turned", without="rotate")
            plan = self.plan(shape, without="rotate") if by_index < score else plan
        return plan.model_copy(update={"candidates": candidates, "target": budget.target})

    def rank(self, shapes: Sequence[Shape], said: str) -> list[tuple[Shape, float]]:
        """The shapes that were looked at, with their KL, best first; `said` is whose they are, for the log."""
        return choose_shape(
            shapes, self.checkpoint.shape, lambda shape: self.score(shape, said=said), self._options.candidates
        )

    def score(self, shape: Shape, *, said: str, without: Repair | None = None) -> float:
        """KL to the teacher right after the cut and a brief repair, nats per token; measured once for each shape."""

        def measure() -> float:
            if self.context.should_stop():
                raise Stopped
            folder = self._scratch / "candidate"
            shutil.rmtree(folder, ignore_errors=True)
            plan = self.plan(shape, without=without)
            lesson = Lesson(rows=self.texts.brief, goals=self.calibration.brief, epochs=1)
            silent = replace(self.context, emit=lambda event: None)
            growth = Growth(self.slicer(plan), self.calibration, self._if_local(plan, lesson), folder, silent)
            growth.run()
            found = growth.kl()
            self.context.report(
                EventType.LOG, f"{said}: {_sizes(shape)}: KL {found:.4f} nats per token right after the cut",
                stage="prune", shape=shape.model_dump(), held_out_kl=found,
            )  # fmt: skip
            shutil.rmtree(folder)
            return found

        key = json.dumps([shape.model_dump(), without])
        return float(self._remembered("scores", key, measure))

    def plan(self, shape: Shape, *, without: Repair | None = None) -> PrunePlan:
        """Which indices stay for this shape."""
        repairs = tuple(repair for repair in self._options.repair if repair != without)
        layers = self._kept_layers(shape.layers)
        family, teacher = self.checkpoint.family, self.checkpoint.shape
        return make_plan(family, teacher, shape, self.statistics, repairs, "candidate", layers)

    def slicer(self, plan: PrunePlan) -> Slicer:
        return Slicer(checkpoint=self.checkpoint, plan=plan, statistics=self.statistics, device=self.context.device)

    def grow(self, plan: PrunePlan, folder: Path) -> tuple[Errors, float]:
        """Write the student's weights into `folder`; return its layers' errors and its KL on the choice.

        A growth that was stopped is taken up from the same folder.
        """
        slicer = self.slicer(plan)
        scratch = self._scratch / f"growing-{plan.target}"
        scratch.mkdir(parents=True, exist_ok=True)
        goals = TeacherStreams(self.teacher, self.texts, scratch, self.context)
        lesson = Lesson(rows=self.texts.calibration, goals=goals.before, epochs=self._options.local_epochs)
        with CheckpointWriter(folder, slicer.entries()) as writer:
            growth = Growth(slicer, self.calibration, self._if_local(plan, lesson), scratch, self.context, writer)
            errors = growth.run()
            return errors, growth.kl()

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


def _clear_if_made_otherwise(scratch: Path, texts: Texts, context: RunContext) -> None:
    """Streams are files of bare numbers: those of another device's type or of other text must not be read."""
    made = {"dtype": str(context.dtype), "device": context.device.type, "rows": list(texts.packed.ids_NS.shape)}
    path = scratch / "made.json"
    if path.exists() and read_json(path) == made:
        return
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_json(path, made)


def _sizes(shape: Shape) -> str:
    said = f"{shape.layers} layers, hidden {shape.hidden}, ffn {shape.ffn}, heads {shape.heads}"
    if shape.kv_heads != shape.heads:
        said += f", KV heads {shape.kv_heads}"
    return said + (f", experts {shape.experts}" if shape.experts else "")
