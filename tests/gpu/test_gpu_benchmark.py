"""The ways that `make bench-distill` compares learn the same from the same tokens."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import distillers
from benchmarks.distillers import Measured, Setting
from benchmarks.random_models import half_the_layers, random_rows, random_teacher
from foundry.engine.distill.schedule import make_schedule
from tests.gpu.conftest import DEVICE, IS_CUDA, needs_gpu

pytestmark = needs_gpu

ROWS, LENGTH, STEPS = 4, 128, 8


def new_setting() -> Setting:
    teacher = random_teacher("tiny", DEVICE, seed=0)
    text, held_out = (random_rows(512, rows, LENGTH, seed) for seed, rows in enumerate((ROWS * STEPS, ROWS)))
    schedule = make_schedule(
        text, tokens=STEPS * ROWS * LENGTH, batch_tokens=ROWS * LENGTH, peak_rate=3e-3, warmup_ratio=0.1, seed=0
    )
    return Setting(
        teacher=teacher, student=half_the_layers(teacher), text=text, held_out=held_out, schedule=schedule,
        rows_at_a_time=2, measures_kl=True, dtype=torch.bfloat16 if IS_CUDA else torch.float32,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.parametrize("way", [distillers.plain, distillers.liger], ids=["a plain loop", "Liger"])
def test_every_way_learns_what_ours_does(way: Callable[[str, Setting], Measured]) -> None:
    if way is distillers.liger:
        pytest.importorskip("liger_kernel")
    ours, theirs = distillers.ours("ours", new_setting()), way("theirs", new_setting())
    assert theirs.tokens == ours.tokens and theirs.tokens_per_s > 0
    assert ours.kl_to_teacher is not None
    # In bfloat16 every way rounds other numbers, and Liger rounds logits too.
    assert theirs.kl_to_teacher == pytest.approx(ours.kl_to_teacher, rel=0.05)
