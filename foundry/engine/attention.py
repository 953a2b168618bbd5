"""Causal attention within documents for packed rows, without a mask.

The usual way is one product of all tokens of a row with all others and a mask over most of the result. A document that
fills a third of a row needs a ninth of that, and half of that again because nothing looks ahead. A CPU takes one
document after the other; an accelerator takes all at once, by FlashAttention for sequences of varying length.

B: rows, S: tokens of a row, A: query heads, D: size of a head, L: tokens of a document, T: tokens of all rows.
"""

import inspect
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_ONE_BY_ONE = "within_documents"
_AT_ONCE = "within_documents_at_once"
_HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256
"""Of FlashAttention, which also wants a multiple of 8 and knows no dropout here."""
_GROUPS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""PyTorch 2.13 wants to be told that several query heads share a key; 2.11 does not ask."""


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


def document_lengths(positions_BS: Tensor) -> list[int]:
    """Lengths of the documents of all rows, one row after the other; padding (positions 0, 0, ...) counts as one.

    A document starts where the position is 0. Of a run of zeros the last belongs to the document that follows, if one
    does.
    """
    rows, length = positions_BS.shape
    start_BS = positions_BS == 0
    # A zero after a zero starts something only when it is followed by a 1.
    after_zero_BS = torch.zeros_like(start_BS)
    after_zero_BS[:, 1:] = start_BS[:, :-1]
    before_one_BS = torch.zeros_like(start_BS)
    before_one_BS[:, :-1] = positions_BS[:, 1:] == 1
    start_BS &= ~after_zero_BS | before_one_BS
    start_BS[:, 0] = True
    starts = start_BS.flatten().nonzero().squeeze(1)
    ends = torch.cat([starts[1:], starts.new_tensor([rows * length])])
    lengths: list[int] = (ends - starts).tolist()
    return lengths


class _Documents(NamedTuple):
    """Where the documents of a batch begin and end."""

    lengths: list[int]
    bounds: Tensor
    """Of all documents, one row after the other, as int32 on the batch's device: 0 first, then every end."""

    @classmethod
    def of(cls, positions_BS: Tensor) -> "_Documents":
        lengths = document_lengths(positions_BS)
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(lengths, ends.to(positions_BS.device))


_last: tuple[weakref.ref[Tensor], _Documents] | None = None


def _documents_of(positions_BS: Tensor) -> _Documents:
    """Found once a batch: all layers of teacher and students ask, and an accelerator waits for each answer."""
    global _last
    if _last is None or _last[0]() is not positions_BS:
        _last = weakref.ref(positions_BS), _Documents.of(positions_BS)
    return _last[1]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Queries [B, A, S, D], keys and values [B, A of fewer, S, D] -> outputs [B, S, A, D]."""
    positions_BS = more.get("position_ids")
    window = more.get("sliding_window")
    rows, heads, length, _ = query.shape
    lengths = _documents_of(positions_BS).lengths if positions_BS is not None and len(positions_BS) == rows else []
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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _at_once(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None,
    *, position_ids: Tensor, scaling: float | None = None, sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The same on an accelerator, sliding windows too. There is no mask to fall back to."""
    rows, heads, length, _size = query.shape
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    documents = _documents_of(position_ids)
    q_TAD, k_TAD, v_TAD = (tensor.transpose(1, 2).flatten(0, 1).to(dtype) for tensor in (query, key, value))
    longest = max(documents.lengths)
    behind = sliding_window - 1 if sliding_window else -1  # a window of one is the token itself
    out_TAD = varlen_attn(
        q_TAD, k_TAD, v_TAD, documents.bounds, documents.bounds, longest, longest,
        scale=scaling, window_size=(behind, 0), **_GROUPS,
    )  # fmt: skip
    assert isinstance(out_TAD, Tensor)
    return out_TAD.view(rows, length, heads, -1), None


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
