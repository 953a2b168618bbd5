"""Attention document by document gives what masked attention gives, for every family and every packing."""

import pytest
import torch

from foundry.engine.attention import attend_within_documents, document_lengths
from tests.families import FAMILY_NAMES, genuine

POSITIONS_BS = torch.tensor(
    [
        [*range(24)],
        [*range(5), *range(10), *range(9)],
        [*range(7), 0, *range(4), *range(8), 0, 0, 0, 0],
    ]
)
INPUTS = {
    "input_ids": torch.arange(72).reshape(3, 24) * 3 + 5, "position_ids": POSITIONS_BS, "use_cache": False,
}  # fmt: skip


def test_document_lengths_split_rows_where_positions_restart_and_keep_padding_together() -> None:
    assert document_lengths(POSITIONS_BS) == [24, 5, 10, 9, 7, 1, 4, 8, 4]
    assert document_lengths(torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]])) == [2, 2, 2, 2]
    assert document_lengths(torch.tensor([[0], [0]])) == [1, 1]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_attention_within_documents_equals_masked_attention(family: str) -> None:
    model = genuine(family, kv_heads=2) if family not in ("gpt2", "gpt_neox") else genuine(family)
    # Padding sees other padding instead of itself alone; nothing reads what comes of it.
    counts_BS = torch.ones_like(POSITIONS_BS, dtype=torch.bool)
    counts_BS[2, -4:] = False
    before, found = model.config._attn_implementation, []
    for _ in range(2):
        logits_TV = model(**INPUTS).logits[counts_BS]
        logits_TV.square().mean().backward()
        found.append((logits_TV.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
        attend_within_documents(model, torch.float32)
    assert (model.config._attn_implementation == "within_documents") == (before == "sdpa")
    (masked, masked_gradients), (within, within_gradients) = found
    torch.testing.assert_close(within, masked, rtol=1e-4, atol=1e-4)
    for one, other in zip(within_gradients, masked_gradients, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))
