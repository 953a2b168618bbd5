"""Causal attention within documents as one operator.

The usual way is one product of all tokens of a row with all others and a mask over most of the result. A document that
fills a third of a row needs a ninth of that, and half of it again where tokens do not look ahead.

PyTorch's `varlen_attn` is no way to it: it wants the documents' bounds, whose number differs from batch to batch, so a
compiled layer would be compiled again and again, and its backward pass gives other bits each time. This operator takes
the positions and looks the bounds up; `torch.compile` takes it as it is.

B: rows, S: tokens of a row, T: B x S, A: query heads, K: key heads, D: size of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foundry.engine.attend_on_cpu import backward_on_cpu, on_cpu
from foundry.engine.documents import documents_of

_ACCELERATORS = "cuda"


@torch.library.custom_op("foundry::attend", mutates_args=(), device_types=_ACCELERATORS)
def attend(
    q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_BS: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """Outputs [T, A, D], and for the backward pass the log of each softmax's sum [A, T], on a CPU zeros.

    Tokens see their own document up to themselves, of which the last `window` where that is not 0. On an accelerator
    the inputs are bfloat16 or float16.
    """
    documents = documents_of(positions_BS)
    longest = max(documents.lengths)
    out_TAD, log_sum_AT, _, _, _ = torch.ops.aten._flash_attention_forward(
        q_TAD, k_TKD, v_TKD, documents.bounds, documents.bounds, longest, longest, 0.0, window == 0, False, scale=scale,
        **_behind(window),
    )  # fmt: skip
    return out_TAD, log_sum_AT


@torch.library.custom_op("foundry::attend_backward", mutates_args=(), device_types=_ACCELERATORS)
def attend_backward(
    gradient_TAD: Tensor, q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, out_TAD: Tensor, log_sum_AT: Tensor,
    positions_BS: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the three inputs; on an accelerator the same bits each time, for resumed runs."""
    documents = documents_of(positions_BS)
    longest = max(documents.lengths)
    drawn = torch.zeros(2, dtype=torch.uint64, device=q_TAD.device)  # for dropout, which there is none of
    with _deterministic():
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            gradient_TAD.contiguous(), q_TAD, k_TKD, v_TKD, out_TAD, log_sum_AT, documents.bounds, documents.bounds,
            longest, longest, 0.0, window == 0, drawn, drawn[:0], scale=scale, **_behind(window),
        )  # fmt: skip
    return gradients


@contextmanager
def _deterministic() -> Iterator[None]:
    """Not `torch.use_deterministic_algorithms`, which switches Inductor too; and new tensors need not be filled."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = settings.fill_uninitialized_memory
    torch._C._set_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fills


def _behind(window: int) -> dict[str, int]:
    """A window counts the token itself, FlashAttention's does not."""
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


attend.register_kernel("cpu")(on_cpu)
attend_backward.register_kernel("cpu")(backward_on_cpu)


@attend.register_fake
def _(
    q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_BS: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_TAD), q_TAD.new_empty(q_TAD.shape[1::-1], dtype=torch.float32)


@attend_backward.register_fake
def _(
    gradient_TAD: Tensor, q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, out_TAD: Tensor, log_sum_AT: Tensor,
    positions_BS: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q_TAD), torch.empty_like(k_TKD), torch.empty_like(v_TKD)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_TAD, k_TKD, v_TKD, positions_BS, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(q_TAD, k_TKD, v_TKD, *output, positions_BS)


def _backward(ctx: Any, gradient_TAD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *kept, positions_BS = ctx.saved_tensors
    q, k, v = attend_backward(gradient_TAD, *kept, positions_BS, ctx.scale, ctx.window)
    return q, k, v, None, None, None


attend.register_autograd(_backward, setup_context=_keep)
