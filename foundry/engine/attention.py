"""Causal attention within documents for packed rows, without a mask.

The usual way is one product of all tokens of a row with all others and a mask over most of the result. A document that
fills a third of a row needs a ninth of that, and half of that again because nothing looks ahead. A CPU takes one
document after the other; an accelerator takes all at once, by FlashAttention for sequences of varying length.

B: rows, S: tokens of a row, A: query heads, D: size of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from foundry.engine.documents import documents_of
from foundry.engine.flash import attend

_ONE_BY_ONE = "within_documents"
_AT_ONCE = "within_documents_at_once"
_HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256
"""Of FlashAttention, which also wants a multiple of 8 and knows no dropout here."""


def attend_within_documents(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let a model whose products run in `dtype` read packed rows document by document; nothing where it cannot.

    Outputs differ from masked attention by rounding alone. Only for batches whose positions restart at each document.
    """
    if model.config._attn_implementation != "sdpa":
        return
    device = next(model.parameters()).device
    if device.type == "cpu":
        model.set_attn_implementation(_ONE_BY_ONE)
    elif device.type == "cuda" and dtype in _HALF and _has_flash_heads(model.config):
        model.set_attn_implementation(_AT_ONCE)


def _has_flash_heads(config: PretrainedConfig) -> bool:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    drops = any(getattr(config, name, None) for name in ("attention_dropout", "attn_pdrop"))
    return size <= _LARGEST_HEAD and size % 8 == 0 and not drops


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Queries [B, A, S, D], keys and values [B, A of fewer, S, D] -> outputs [B, S, A, D]."""
    positions_BS = more.get("position_ids")
    window = more.get("sliding_window")
    rows, heads, length, _ = query.shape
    lengths = documents_of(positions_BS).lengths if positions_BS is not None and len(positions_BS) == rows else []
    if not lengths or (window and max(lengths) > window):
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return whole
    parts = (torch.split(_one_row(tensor), lengths, dim=2) for tensor in (query, key, value))
    found = [
        nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != heads
        ).transpose(1, 2)
        for q, k, v in zip(*parts, strict=True)
    ]  # fmt: skip
    return torch.cat(found, dim=1).view(rows, length, heads, -1), None


def _at_once(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None,
    *, position_ids: Tensor, scaling: float | None = None, sliding_window: int | None = None, **_more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The same on an accelerator, sliding windows too. There is no mask to fall back to."""
    rows, heads, length, size = query.shape
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    q_TAD, k_TKD, v_TKD = (tensor.transpose(1, 2).flatten(0, 1).to(dtype) for tensor in (query, key, value))
    scale = size**-0.5 if scaling is None else scaling
    out_TAD, _ = attend(q_TAD, k_TKD, v_TKD, position_ids, scale, sliding_window or 0)
    return out_TAD.view(rows, length, heads, size), None


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers makes a mask [B, 1, S, S] otherwise, at every step."""


def _one_row(tensor_BASD: Tensor) -> Tensor:
    """[B, A, S, D] -> [1, A, B x S, D], without a copy where tokens lie before heads in memory."""
    rows, heads, length, size = tensor_BASD.shape
    return tensor_BASD.transpose(1, 2).reshape(1, rows * length, heads, size).transpose(1, 2)


AttentionInterface.register(_ONE_BY_ONE, _one_by_one)
AttentionMaskInterface.register(_ONE_BY_ONE, sdpa_mask)
AttentionInterface.register(_AT_ONCE, _at_once)
AttentionMaskInterface.register(_AT_ONCE, _no_mask)
