"""Causal attention within documents, one document after the other, for packed rows on a CPU.

The usual way is one product of all tokens of a row with all others and a mask over most of the result. A document that
fills a third of a row needs a ninth of that, and half of that again because nothing looks ahead.

B: rows, S: tokens of a row, A: query heads, D: size of a head, L: tokens of a document.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "within_documents"


def attend_within_documents(model: PreTrainedModel) -> None:
    """Let a model on a CPU read packed rows document by document. Elsewhere, and where SDPA cannot be used, do nothing.

    Outputs differ from masked attention by rounding alone. Only for batches whose positions restart at each document.
    """
    if next(model.parameters()).device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)


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


def _within_documents(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Queries [B, A, S, D], keys and values [B, A of fewer, S, D] -> outputs [B, S, A, D]."""
    positions_BS = more.get("position_ids")
    window = more.get("sliding_window")
    lengths = document_lengths(positions_BS) if positions_BS is not None and len(positions_BS) == len(query) else []
    if not lengths or (window and max(lengths) > window):
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return whole
    rows, heads, length, _ = query.shape
    parts = (torch.split(_one_row(tensor), lengths, dim=2) for tensor in (query, key, value))
    found = [
        nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != heads
        ).transpose(1, 2)
        for q, k, v in zip(*parts, strict=True)
    ]  # fmt: skip
    return torch.cat(found, dim=1).view(rows, length, heads, -1), None


def _one_row(tensor_BASD: Tensor) -> Tensor:
    """[B, A, S, D] -> [1, A, B x S, D], without a copy where tokens lie before heads in memory."""
    rows, heads, length, size = tensor_BASD.shape
    return tensor_BASD.transpose(1, 2).reshape(1, rows * length, heads, size).transpose(1, 2)


AttentionInterface.register(_NAME, _within_documents)
AttentionMaskInterface.register(_NAME, sdpa_mask)
