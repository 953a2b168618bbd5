"""Attention within documents on a GPU against its definition in float64, eager and compiled."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foundry.engine.attend import attend
from foundry.engine.attention import attend_within_documents
from foundry.engine.compiled import compile_layers
from foundry.engine.context import RunContext
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.objectives import Goal, match_teacher
from tests.gpu.conftest import DEVICE, IS_CUDA, needs_gpu, new_model
from tests.gpu.test_gpu_training import texts

pytestmark = needs_gpu

LENGTHS = [[200, 1, 55], [256], [3, 250, 3]]
"""Of the documents of each row."""
HEADS, KEY_HEADS = 8, 2
DTYPE = torch.bfloat16


def positions() -> Tensor:
    rows = [torch.cat([torch.arange(length) for length in lengths]) for lengths in LENGTHS]
    return torch.stack(rows).to(DEVICE)


def inputs(size: int) -> list[Tensor]:
    """q, k, v and a gradient of the outputs, in bfloat16."""
    generator = torch.Generator().manual_seed(size)
    tokens = positions().numel()
    return [
        torch.randn(tokens, heads, size, generator=generator).to(DEVICE, DTYPE)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    ]


def defined(given: list[Tensor], scale: float, window: int) -> list[Tensor]:
    """Outputs and the three gradients, from whole masked products in float64."""
    q_TAD, k_TKD, v_TKD = (tensor.double().requires_grad_() for tensor in given[:3])
    positions_BS = positions()
    position_T = positions_BS.flatten()
    document_T = (position_T == 0).cumsum(0)
    tokens = torch.arange(len(position_T), device=DEVICE)
    distance_TT = tokens[:, None] - tokens
    seen_TT = (document_T[:, None] == document_T) & (distance_TT >= 0)
    if window:
        seen_TT &= distance_TT < window
    k_TAD, v_TAD = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (k_TKD, v_TKD))
    scores_ATT = torch.einsum("tad,uad->atu", q_TAD, k_TAD) * scale
    chances_ATT = scores_ATT.masked_fill(~seen_TT, -torch.inf).softmax(dim=-1)
    out_TAD = torch.einsum("atu,uad->tad", chances_ATT, v_TAD)
    return [out_TAD.detach(), *torch.autograd.grad(out_TAD, (q_TAD, k_TKD, v_TKD), given[3].double())]


def found(given: list[Tensor], scale: float, window: int) -> list[Tensor]:
    q_TAD, k_TKD, v_TKD = (tensor.clone().requires_grad_() for tensor in given[:3])
    out_TAD, _ = attend(q_TAD, k_TKD, v_TKD, positions(), scale, window)
    return [out_TAD.detach(), *torch.autograd.grad(out_TAD, (q_TAD, k_TKD, v_TKD), given[3])]


@pytest.mark.parametrize("window", [0, 64], ids=["no window", "a window of 64"])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_the_operator_equals_its_float64_definition_and_gives_the_same_bits_each_time(size: int, window: int) -> None:
    given, scale = inputs(size), size**-0.5
    once, again, expected = found(given, scale, window), found(given, scale, window), defined(given, scale, window)
    for name, mine, theirs in zip(("outputs", "of q", "of k", "of v"), once, expected, strict=True):
        # Chances and their gradients are rounded to 8 bits before they are multiplied.
        assert (mine.double() - theirs).abs().max() <= 2e-2 * theirs.abs().max(), name
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.skipif(not IS_CUDA, reason="a CPU has a kernel of its own")
@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_model_in_bfloat16_takes_the_operator(size: int) -> None:
    model = new_model(head_dim=size).to(DEVICE, DTYPE)
    attend_within_documents(model, DTYPE)
    assert model.config._attn_implementation == "within_documents"


@pytest.mark.skipif(not IS_CUDA, reason="compiling for a CPU takes long")
def test_compiled_layers_are_as_near_to_float32_as_eager_ones_and_give_the_same_bits_each_time(
    context: RunContext,
) -> None:
    text, _ = texts()
    batch = text.batch(range(4), DEVICE)

    def moments(dtype: torch.dtype, *, compiles: bool) -> Tensor:
        """What one update leaves of the gradient, from weights that bfloat16 holds."""
        teacher, student = (new_model(seed).to(DTYPE).to(DEVICE, dtype) for seed in (0, 1))
        attend_within_documents(teacher, dtype)
        learner = Learner("small", student, dtype)
        for model in (teacher, student) if compiles else ():
            compile_layers(model)
        objective = match_teacher(teacher, Goal(), replace(context, dtype=dtype))
        learner.accumulate(batch, objective(batch, 1 / int(batch.targets_BS.sum())))
        learner.update(1e-3)
        return torch.cat([m.flatten() for name, m in learner.state().items() if name.startswith("exp_avg.")])

    exact, eager, compiled = (
        moments(dtype, compiles=compiles) for dtype, compiles in ((torch.float32, False), (DTYPE, False), (DTYPE, True))
    )
    errors = [float((found - exact).norm() / exact.norm()) for found in (eager, compiled)]
    print(f"\nerror of the gradient in bfloat16: eager {errors[0]:.2e}, compiled {errors[1]:.2e}")
    assert errors[1] <= 1.25 * errors[0] < 0.2
    assert torch.equal(moments(DTYPE, compiles=True), compiled)
