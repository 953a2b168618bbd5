"""FlashAttention within documents as one operator, which `torch.compile` takes as it is.

PyTorch's own `varlen_attn` wants to be told the documents' bounds, whose number differs from batch to batch, so that a
compiled layer would be compiled again and again. This operator takes the positions and looks the bounds up. Its
backward pass is the deterministic one: a run that is resumed must give the same bits.

B: rows, S: tokens of a row, T: B x S, A: query heads, K: key heads, D: size of a head.
"""

from typing import Any

import torch
from torch import Tensor

from foundry.engine.documents import documents_of


@torch.library.custom_op("foundry::attend", mutates_args=(), device_types="cuda")
def attend(
    q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_BS: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Outputs [T, A, D] and the log of each softmax's sum [A, T].

    Tokens see their own document up to themselves, of which the last `window` where that is not 0.
    """
    documents = documents_of(positions_BS)
    longest = max(documents.lengths)
    out_TAD, log_sum_AT, _, _, _ = torch.ops.aten._flash_attention_forward(
        q_TAD, k_TKD, v_TKD, documents.bounds, documents.bounds, longest, longest, 0.0, window == 0, False, scale=scale,
        **_behind(window),
    )  # fmt: skip
    return out_TAD, log_sum_AT


@attend.register_fake
def _(
    q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_BS: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    log_sum_AT = q_TAD.new_empty((q_TAD.shape[1], q_TAD.shape[0]), dtype=torch.float32)
    return torch.empty_like(q_TAD), log_sum_AT


@torch.library.custom_op("foundry::attend_backward", mutates_args=(), device_types="cuda")
def _attend_backward(
    gradient_TAD: Tensor, q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, out_TAD: Tensor, log_sum_AT: Tensor,
    positions_BS: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    documents = documents_of(positions_BS)
    longest = max(documents.lengths)
    drawn = torch.zeros(2, dtype=torch.uint64, device=q_TAD.device)  # of dropout, which there is none of
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        q, k, v = torch.ops.aten._flash_attention_backward(
            gradient_TAD.contiguous(), q_TAD, k_TKD, v_TKD, out_TAD, log_sum_AT, documents.bounds, documents.bounds,
            longest, longest, 0.0, window == 0, drawn, drawn[:0], scale=scale, **_behind(window),
        )  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
    return q, k, v


@_attend_backward.register_fake
def _(
    gradient_TAD: Tensor, q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, out_TAD: Tensor, log_sum_AT: Tensor,
    positions_BS: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q_TAD), torch.empty_like(k_TKD), torch.empty_like(v_TKD)


def _behind(window: int) -> dict[str, int]:
    """A window counts the token itself, FlashAttention's does not."""
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_TAD, k_TKD, v_TKD, positions_BS, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(q_TAD, k_TKD, v_TKD, *output, positions_BS)


def _backward(context: Any, gradient_TAD: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *kept, positions_BS = context.saved_tensors
    q, k, v = _attend_backward(gradient_TAD, *kept, positions_BS, context.scale, context.window)
    return q, k, v, None, None, None


attend.register_autograd(_backward, setup_context=_keep)
