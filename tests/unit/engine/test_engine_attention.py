"""Attention document by document gives what masked attention gives, for every family and every packing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foundry.engine import attend_on_cpu
from foundry.engine.attend import attend
from foundry.engine.attention import attend_within_documents, hands_positions_on
from foundry.engine.documents import document_lengths, documents_of
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


def test_documents_are_found_once_a_batch_and_again_for_positions_that_changed_in_place() -> None:
    positions_BS = POSITIONS_BS.clone()
    first = documents_of(positions_BS)
    assert first.bounds.tolist() == [0, 24, 29, 39, 48, 55, 56, 60, 68, 72]
    assert documents_of(positions_BS.view(3, 24)) is first
    positions_BS[0, 12:] = torch.arange(12)
    assert documents_of(positions_BS).lengths[:2] == [12, 12]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_attention_within_documents_equals_masked_attention(family: str) -> None:
    model = _model(family)
    before, masked = model.config._attn_implementation, _logits_and_gradients(model)
    attend_within_documents(model, torch.float32)
    # In some versions of transformers Ministral 3 and Nemotron keep the positions to themselves.
    possible = before == "sdpa" and (family not in ("ministral3", "nemotron") or hands_positions_on(model))
    possible = possible and not any(
        getattr(model.config, name, None) for name in ("attention_dropout", "attn_logit_softcapping")
    )
    assert (model.config._attn_implementation == "within_documents") == possible
    _assert_close(_logits_and_gradients(model), masked)


@pytest.mark.parametrize("window", [0, 3, 40, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores", [1 << 19, 1])
def test_the_operator_gives_what_attention_is_defined_as(
    monkeypatch: pytest.MonkeyPatch, window: int, dtype: torch.dtype, scores: int
) -> None:
    """Documents shorter and longer than tiles, that begin within them, and a last tile that is not full."""
    monkeypatch.setattr(attend_on_cpu, "_SCORES", scores)
    lengths = [2, 30, 1, 31, 32, 5, 150, 64, 10]
    positions_BS = torch.cat([torch.arange(length) for length in lengths])[None]
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(325, heads, 8, generator=generator).to(dtype).requires_grad_() for heads in (6, 2, 2)]
    weights = torch.randn(325, 6, 8, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out, _ = attend(*given, positions_BS, 0.5, window)
    found = torch.autograd.grad((out.float() * weights).sum(), given)
    wanted = [tensor.detach().double().requires_grad_() for tensor in given]
    defined = _defined(wanted, torch.tensor(lengths), window)
    expected = torch.autograd.grad((defined * weights).sum(), wanted)
    error = 2e-6 if dtype == torch.float32 else 1e-2  # outputs and gradients are rounded to 8 bits
    for one, other in zip((out, *found), (defined, *expected), strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= error * other.abs().max()


def _defined(given: list[Tensor], lengths: Tensor, window: int) -> Tensor:
    q_ATD, k_ATD, v_ATD = (t.transpose(0, 1).repeat_interleave(6 // t.shape[1], dim=0) for t in given)
    document_T, place_T = torch.arange(len(lengths)).repeat_interleave(lengths), torch.arange(int(lengths.sum()))
    behind_TT = place_T[:, None] - place_T
    seen_TT = (document_T[:, None] == document_T) & (behind_TT >= 0) & (behind_TT < (window or 1000))
    scores_ATT = (0.5 * q_ATD @ k_ATD.mT).masked_fill(~seen_TT, -torch.inf)
    return (scores_ATT.softmax(dim=-1) @ v_ATD).transpose(0, 1)


def test_a_model_that_is_told_no_positions_reads_every_row_as_one_document() -> None:
    model = _model("llama")
    ids_BS = INPUTS["input_ids"]
    with torch.no_grad():
        masked: Any = model(ids_BS, use_cache=False).logits
        attend_within_documents(model, torch.float32)
        torch.testing.assert_close(model(ids_BS, use_cache=False).logits, masked, rtol=1e-4, atol=1e-4)


def test_the_operator_keeps_to_what_compilers_are_told_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(72, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    torch.library.opcheck(attend, (q, k, v, POSITIONS_BS, 0.5, 6))


@pytest.mark.parametrize("more", ["attention_dropout", "attn_logit_softcapping"])
def test_what_the_kernels_do_not_do_stays_with_the_model_s_own_way(more: str) -> None:
    model = genuine("llama", **{more: 0.1})
    attend_within_documents(model, torch.float32)
    assert model.config._attn_implementation == "sdpa"


Found = tuple[Tensor, list[Tensor]]


def _model(family: str) -> PreTrainedModel:
    return genuine(family, kv_heads=2) if family not in ("gpt2", "gpt_neox") else genuine(family)


def _logits_and_gradients(model: PreTrainedModel) -> Found:
    # Padding sees other padding instead of itself alone; nothing reads what comes of it.
    counts_BS = torch.ones_like(POSITIONS_BS, dtype=torch.bool)
    counts_BS[2, -4:] = False
    logits_TV: Any = model(**INPUTS).logits[counts_BS]
    logits_TV.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return logits_TV.detach(), gradients


def _assert_close(found: Found, expected: Found) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))
