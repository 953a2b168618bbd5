"""Lets a transformers model attend within documents, without a mask.

B: rows, S: tokens of a row, A: query heads, K: key heads, D: size of a head.
"""

import inspect
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from foundry.engine.attend import attend

_NAME = "within_documents"
_HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256
"""Of FlashAttention on accelerators, which also wants a multiple of 8."""


def attend_within_documents(model: PreTrainedModel, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Let a model whose products run in `dtype` read packed rows document by document; nothing where it cannot.

    Outputs differ from masked attention by rounding alone. Only for batches whose positions restart at each document.
    `device` is where the model will run, by default where it lies.
    """
    if model.config._attn_implementation == "sdpa" and _is_possible(model, dtype, device or model.device):
        model.set_attn_implementation(_NAME)


def _is_possible(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> bool:
    config = model.config
    more = ("attention_dropout", "attn_pdrop", "attn_logit_softcapping")  # none of which the kernels do
    if any(getattr(config, name, None) for name in more) or not hands_positions_on(model):
        return False
    if device.type == "cpu":
        return True
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        device.type == "cuda"
        and dtype in _HALF
        and size <= _LARGEST_HEAD
        and size % 8 == 0
        and _has_flash(device, size)
    )


def hands_positions_on(model: PreTrainedModel) -> bool:
    """Whether attention that takes positions by name gives them to its kernel: Ministral 3's in transformers 5.17 does
    not."""
    forwards = {type(module).forward for module in model.modules() if type(module).__name__.endswith("Attention")}
    taking = [forward for forward in forwards if "position_ids" in inspect.signature(forward).parameters]
    return all("position_ids=position_ids" in inspect.getsource(forward) for forward in taking)


@cache
def _has_flash(device: torch.device, size: int) -> bool:
    """Whether an accelerator has a right kernel for both passes: tried, not read from its name."""
    positions_BS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(8, heads, size, generator=generator, requires_grad=True) for heads in (2, 1, 1)]
    try:
        there = [tensor.detach().to(device, torch.bfloat16).requires_grad_() for tensor in inputs]
        found = _passes(there, positions_BS.to(device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttributeError) as error:
        warnings.warn(f"no FlashAttention on {device}, so attention goes by masks, slowly: {error}", stacklevel=2)
        return False
    known = _passes(inputs, positions_BS)
    is_right = all(_are_near(one.float().cpu(), other) for one, other in zip(found, known, strict=True))
    if not is_right:
        warnings.warn(f"FlashAttention on {device} is wrong, so attention goes by masks, slowly", stacklevel=2)
    return is_right


def _are_near(rounded: Tensor, exact: Tensor) -> bool:
    return bool((rounded - exact).norm() <= 0.05 * exact.norm())


@torch.enable_grad()
def _passes(inputs: list[Tensor], positions_BS: Tensor) -> list[Tensor]:
    q_TAD, k_TKD, v_TKD = inputs
    out_TAD, _ = attend(q_TAD, k_TKD, v_TKD, positions_BS, q_TAD.shape[-1] ** -0.5, 3)
    return [out_TAD.detach(), *torch.autograd.grad(out_TAD.square().sum(), inputs)]


def _within_documents(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None,
    *, position_ids: Tensor, scaling: float | None = None, sliding_window: int | None = None, **_more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Queries [B, A, S, D], keys and values [B, K, S, D] -> outputs [B, S, A, D]."""
    rows, heads, length, size = query.shape
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    # One row alone is still a view here, heads before tokens; compiled code relies on the layout that is promised.
    q_TAD, k_TKD, v_TKD = (
        tensor.transpose(1, 2).flatten(0, 1).to(dtype).contiguous() for tensor in (query, key, value)
    )
    scale = size**-0.5 if scaling is None else scaling
    positions_BS = position_ids.expand(rows, length)  # transformers counts through one row where it is told nothing
    out_TAD, _ = attend(q_TAD, k_TKD, v_TKD, positions_BS, scale, sliding_window or 0)
    return out_TAD.view(rows, length, heads, size), None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers makes a mask [B, 1, S, S] otherwise, at every step."""


AttentionInterface.register(_NAME, _within_documents)
AttentionMaskInterface.register(_NAME, _no_mask)
