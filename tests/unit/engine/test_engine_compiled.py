"""Compiled layers learn what others do, and a machine that cannot compile says so before any work."""

from pathlib import Path

import psutil
import pytest
import torch
from torch._inductor import config as inductor

from foundry.engine import compiled
from foundry.engine.compiled import can_compile, check_compiler, compile_layers
from foundry.engine.context import RunContext, Stopped
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.memory import checkpoint_activations
from foundry.engine.distill.objectives import Goal, match_teacher
from foundry.engine.distill.trainer import History, Training, train
from foundry.engine.norms import fuse_norms
from foundry.engine.workspace import Workspace
from foundry.errors import OperatorError
from tests import tiny
from tests.compilers import needs_compiler
from tests.unit.engine.conftest import Heard
from tests.unit.engine.test_distill_trainer import assert_same_bits, new_training, weights_of

CPU = torch.device("cpu")


def new_run(context: RunContext, *, is_compiled: bool) -> tuple[Learner, Training]:
    teacher, student = (tiny.new_model(seed=seed, layers=1, ffn=ffn) for seed, ffn in ((1, 64), (2, 32)))
    fuse_norms(teacher)
    learner = Learner("student", student, context.dtype)
    checkpoint_activations(student)
    if is_compiled:
        compile_layers(teacher)
        compile_layers(student)
    return learner, new_training(match_teacher(teacher, Goal(), context), steps=6)


def losses(history: History) -> list[float]:
    return [row["loss"] for row in history["rows"] if "loss" in row]


@needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
def test_a_compiled_run_learns_the_same_and_resumes_to_the_same_bits(
    context: RunContext, heard: Heard, tmp_path: Path
) -> None:
    children = psutil.Process().children()
    assert can_compile(CPU)
    learner, training = new_run(context, is_compiled=False)
    plain = train([learner], training, Workspace(tmp_path / "plain"), context)
    whole, training = new_run(context, is_compiled=True)
    found = train([whole], training, Workspace(tmp_path / "whole"), context)
    assert losses(found["student"]) == pytest.approx(losses(plain["student"]), rel=1e-5)
    assert psutil.Process().children() == children  # of the compiler none, which would have to be waited for

    heard.events.clear()
    heard.stop_after = 3
    interrupted = Workspace(tmp_path / "interrupted")
    learner, training = new_run(context, is_compiled=True)
    with pytest.raises(Stopped):
        train([learner], training, interrupted, context)
    heard.stop_after = None
    resumed, training = new_run(context, is_compiled=True)
    train([resumed], training, interrupted, context)
    assert_same_bits(weights_of(whole), weights_of(resumed))


def test_a_machine_without_a_compiler_is_told_what_to_install() -> None:
    compiled._why_not.cache_clear()
    torch._dynamo.reset()
    nothing_there = inductor.patch({"cpp.cxx": (None, "/no/such/compiler"), "fx_graph_cache": False})
    told = r"distill\.compile.*InvalidCxxCompiler.*Install a C\+\+ compiler"
    try:
        with nothing_there, pytest.raises(OperatorError, match=told) as raised:
            check_compiler(CPU)
    finally:
        compiled._why_not.cache_clear()
    assert raised.value.pointer == "/distill/compile"
