"""A context that remembers what it was told, and a workspace with a tiny teacher and pruned students."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry.engine.context import RunContext
from foundry.engine.workspace import Inputs, Workspace, write_json
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from foundry.spec.variant import PrunePlan
from foundry.spec.weights import Shape
from tests import tiny

FFN = {"small": 32, "large": 48}
"""Kept ffn channels of each target's student; the teacher has 64."""


@dataclass
class Heard:
    """Every event of a run; asks it to stop once `stop_after` progress events have come."""

    events: list[RunEvent] = field(default_factory=list)
    stop_after: int | None = None

    def __call__(self, event: RunEvent) -> None:
        self.events.append(event)

    def of(self, type: EventType) -> list[RunEvent]:
        return [event for event in self.events if event.type == type]

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.of(EventType.PROGRESS)) >= self.stop_after


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def context(heard: Heard) -> RunContext:
    """On the CPU in float32, where two orders of the same sum differ least."""
    return RunContext(
        emit=heard, should_stop=heard.should_stop, device=torch.device("cpu"), dtype=torch.float32, seed=0
    )


@pytest.fixture
def bf16_context(context: RunContext) -> RunContext:
    return replace(context, dtype=torch.bfloat16)


MakeWorkspace = Callable[..., tuple[JobSpec, Workspace]]


@pytest.fixture
def make_workspace(tmp_path: Path) -> MakeWorkspace:
    """A job whose prune stage is done: `make_workspace("name", distill={...})`."""
    teacher = tiny.save(tmp_path / "teacher", tiny.new_model(seed=1))
    data = tiny.write_texts(tmp_path / "data.jsonl", documents=150, words=40)

    def make(
        name: str = "job", *, data: Path = data, teacher: Path = teacher, **stages: Any
    ) -> tuple[JobSpec, Workspace]:
        targets = [{"name": target, "max_params": 1000 * ffn} for target, ffn in FFN.items()]
        document = {"teacher": str(teacher), "data": str(data), "targets": targets, **stages}
        spec = parse(JobSpec, document)
        inputs = Inputs(teacher=str(teacher), data=str(data), data_sha256="of the tests")
        workspace = Workspace.create(tmp_path / name, spec, inputs)
        for target, ffn in FFN.items():
            write_student(workspace, target, ffn)
        workspace.finish("prune")
        return spec, workspace

    return make


def write_student(workspace: Workspace, target: str, ffn: int, *, cuts_nothing: bool = False) -> None:
    """What the prune stage would leave: a plan and a model folder."""
    folder = workspace.stage("prune", target)
    shape = Shape(layers=2, hidden=32, ffn=64, heads=4, kv_heads=2, head_dim=8, vocab=320, tied=False)
    plan = PrunePlan(
        family="llama", target=target, teacher_shape=shape,
        shape=shape if cuts_nothing else shape.model_copy(update={"ffn": ffn}),
        layers=(0, 1), hidden=tuple(range(32)), ffn=(tuple(range(ffn)),) * 2, heads=((0, 1, 2, 3),) * 2,
    )  # fmt: skip
    write_json(folder / "plan.json", plan.model_dump(mode="json"))
    tiny.save(folder / "model", tiny.new_model(ffn=ffn, seed=ffn))
