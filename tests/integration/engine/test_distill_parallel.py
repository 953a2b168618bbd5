"""Two processes distil as one does: the same losses and weights within rounding, the same bits when interrupted.

The laws run in two processes forked from a server that has torch loaded; the whole way, by torchrun, once.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from foundry.engine.compiled import compile_layers
from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import pack
from foundry.engine.distill.hidden import HiddenMatch, Pairs
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.memory import checkpoint_activations
from foundry.engine.distill.objectives import Goal, match_teacher
from foundry.engine.distill.parallel import ALONE, Ranks, whole
from foundry.engine.distill.schedule import make_schedule
from foundry.engine.distill.stage import distill
from foundry.engine.distill.trainer import Training, train
from foundry.engine.workspace import Workspace
from foundry.intake.documents import Document
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.stages import HiddenLoss
from tests import tiny
from tests.compilers import needs_compiler
from tests.unit.engine.conftest import FFN, Heard, MakeWorkspace
from tests.unit.engine.conftest import context as context
from tests.unit.engine.conftest import heard as heard
from tests.unit.engine.conftest import make_workspace as make_workspace

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
STEPS = 6
WAYS: dict[str, dict[str, Any]] = {
    "adamw, two students, an average": {"students": (32, 48), "ema_decay": 0.9},
    "muon, tied, the best look": {"students": (32,), "tied": True, "optimizer": "muon", "keeps_best": True},
    "compiled layers, activations recomputed": {"students": (32,), "recompute": True, "compiled": True},
    "hidden states through a projection, activations recomputed": {"students": (32,), "hidden": 24, "recompute": True},
}


@dataclass
class Course:
    """One run: what it trains, where, and after how many steps it is asked to stop. Two processes alone compile."""

    folder: Path
    way: dict[str, Any]
    stop_after: int | None = None
    events: list[RunEvent] = field(default_factory=list)

    def __call__(self, ranks: Ranks) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """Histories, and the weights that would be shipped, whole."""
        context = RunContext(
            emit=self.events.append, should_stop=self.should_stop, device=CPU, dtype=torch.float32, seed=0
        )
        way = dict(self.way)
        compiled = way.pop("compiled", False) and ranks.size > 1
        widths, tied, hidden = way.pop("students"), way.pop("tied", False), way.pop("hidden", None)
        recompute = way.pop("recompute", False)
        teacher = tiny.new_model(seed=1, tied=tied)
        ranks.shard(teacher)
        learners = []
        for width in widths:
            student = tiny.new_model(ffn=width, seed=width, tied=tied, hidden=hidden or 32)
            if recompute:
                checkpoint_activations(student)
            ranks.shard(student)
            matched = None
            if hidden is not None:
                pairs = Pairs.of(HiddenLoss(kind="mse", layers=2), (0, 1), 2, 32)
                matched = HiddenMatch(pairs, hidden, seed=0)
            learners.append(Learner(f"ffn-{width}", student, torch.float32, hidden=matched, ranks=ranks, **way))
        for model in (teacher, *(learner.model for learner in learners)) if compiled else ():
            compile_layers(model)
        watched = (0, 1) if hidden is not None else ()
        training = new_training(match_teacher(teacher, Goal(), context, watched), way.get("keeps_best", False))
        histories = train(learners, training, Workspace(self.folder), context, ranks)
        assert not compiled or counters["stats"]["unique_graphs"] > 0
        return histories, {
            learner.name: {name: whole(tensor.detach()).clone() for name, tensor in learner.model.state_dict().items()}
            for learner in learners
        }

    def should_stop(self) -> bool:
        done = sum(event.type is EventType.PROGRESS for event in self.events)
        return self.stop_after is not None and done >= self.stop_after


def new_training(objective: Any, keeps_best: bool) -> Training:
    """Batches of five rows: of two processes one has three and the other two."""
    tokenizer = tiny.new_tokenizer()
    documents = [Document(key=str(n), text=tiny.sentence(n, 30)) for n in range(40)]
    text, held_out = (pack(some, tokenizer, 32, seed=0) for some in (documents[10:], documents[:10]))
    schedule = make_schedule(text, tokens=STEPS * 160, batch_tokens=160, peak_rate=3e-3, warmup_ratio=0.1, seed=0)
    return Training(
        stage="distill", schedule=schedule, text=text, held_out=held_out, objective=objective, checkpoint_steps=4,
        evaluate_steps=2, digest="one", patience_looks=9 if keeps_best else None,
    )  # fmt: skip


def _one_of_two(rank: int, folder: Path, course: Course) -> None:
    """In a process of its own; what it found, or why it stopped, is in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: Any
    try:
        found = course(Ranks(rank, 2, init_device_mesh("cpu", (2,))))
    except Stopped:
        found = None
    finally:
        dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")


Together = Callable[[Course], Any]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    """Run a course in two processes; what both found is the same."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.integration.engine.test_distill_parallel"])

    def run(course: Course) -> Any:
        folder = tmp_path_factory.mktemp("two")
        members = [server.Process(target=_one_of_two, args=(rank, folder, course)) for rank in range(2)]
        for member in members:
            member.start()
        for member in members:
            member.join(300)
            assert member.exitcode == 0
        one, other = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
        assert (one is None) == (other is None)
        if one is not None:
            assert one[0] == other[0]
            assert_close(one[1], other[1], rtol=0, atol=0)
        return one

    yield run


def assert_close(
    one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]], *, rtol: float, atol: float
) -> None:
    assert one.keys() == other.keys()
    for student, weights in one.items():
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, other[student][name], rtol=rtol, atol=atol, msg=f"{student} {name}")


@pytest.mark.parametrize(
    "way", [pytest.param(way, id=name, marks=needs_compiler if "compiled" in way else ()) for name, way in WAYS.items()]
)
def test_two_processes_learn_what_one_does(way: dict[str, Any], together: Together, tmp_path: Path) -> None:
    histories, weights = Course(tmp_path / "one", way)(ALONE)
    divided, gathered = together(Course(tmp_path / "two", way))
    for name, history in histories.items():
        for key in ("loss", "held_out_loss"):
            expected = [row[key] for row in history["rows"] if key in row]
            assert [row[key] for row in divided[name]["rows"] if key in row] == pytest.approx(expected, rel=1e-4)
    # AdamW's first steps have the size of the rate whatever the gradient, so a rounding error in one near zero shows.
    assert_close(weights, gathered, rtol=1e-2, atol=1e-3)


def test_two_processes_give_the_same_bits_when_stopped_and_resumed_as_when_not(
    together: Together, tmp_path: Path
) -> None:
    way = WAYS["muon, tied, the best look"]
    whole_histories, whole_weights = together(Course(tmp_path / "whole", way))
    assert together(Course(tmp_path / "halted", way, stop_after=3)) is None
    (step, folder), *_ = Workspace(tmp_path / "halted").checkpoints("distill")
    assert step == 3
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    histories, weights = together(Course(tmp_path / "halted", way))
    assert histories == whole_histories
    assert_close(weights, whole_weights, rtol=0, atol=0)


def test_two_processes_go_on_from_the_checkpoint_of_one(together: Together, tmp_path: Path) -> None:
    way = WAYS["adamw, two students, an average"]
    _, expected = Course(tmp_path / "whole", way)(ALONE)
    with pytest.raises(Stopped):
        Course(tmp_path / "halted", way, stop_after=3)(ALONE)
    _, weights = together(Course(tmp_path / "halted", way))
    assert_close(expected, weights, rtol=1e-2, atol=1e-3)


def test_distill_stops_with_two_processes_and_goes_on_with_one(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    """The whole way: torchrun, a saved signal, events, the stop, a checkpoint in shards, plain models."""
    asked = {"tokens": 12288, "batch_tokens": 512, "learning_rate": 3e-3, "signal": {"kind": "top_k", "k": 32}}
    spec, alone = make_workspace("alone", distill=asked)
    distill(spec, alone, context)
    spec, divided = make_workspace("divided", distill=asked)
    heard.events.clear()
    heard.stop_after = 3  # one of them is the teacher's, which reads the text first
    with pytest.raises(Stopped):
        distill(spec, divided, replace(context, accelerators=2))
    steps = [event.data["step"] for event in heard.of(EventType.PROGRESS) if "loss" in event.data]
    assert steps and steps[-1] < 24
    heard.stop_after = None
    distill(spec, divided, context)
    said = [workspace.result("distill")["targets"] for workspace in (alone, divided)]
    for target in FFN:
        assert said[1][target]["steps"] == said[0][target]["steps"] == 24
        losses = [one[target]["held_out_loss_after"] for one in said]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        start, one, other = (
            load_file(folder / "model" / "model.safetensors")
            for folder in (
                divided.stage("prune", target), alone.stage("distill", target), divided.stage("distill", target)
            )
        )  # fmt: skip
        # Wherever it was stopped. Weight by weight AdamW may step another way where a gradient is nothing but rounding.
        for name, tensor in one.items():
            assert (other[name] - tensor).norm() < 0.05 * (tensor - start[name]).norm(), name
