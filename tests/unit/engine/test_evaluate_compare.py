"""Every figure of a comparison against its definition in float64."""

import math

import pytest
import torch
from torch import Tensor

from foundry.engine import products
from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import pack
from foundry.engine.evaluate.compare import compare
from foundry.engine.packed import Packed
from foundry.errors import DamagedCheckpoint
from foundry.intake.documents import Document
from tests import tiny
from tests.unit.engine.conftest import Heard


@pytest.fixture
def text() -> Packed:
    tokenizer = tiny.new_tokenizer()
    plain = [Document(key=str(n), text=tiny.sentence(n, 20)) for n in range(6)]
    prompts = [Document(key=f"p{n}", prompt=tiny.sentence(n, 6), completion=" a café") for n in range(6)]
    return pack([*plain, *prompts], tokenizer, 48)


def log_probabilities(model: torch.nn.Module, text: Packed) -> Tensor:
    with torch.no_grad():
        logits_BSV = model.double()(**text.batch(slice(None)).model_inputs()).logits
    return torch.log_softmax(logits_BSV[text.targets_NS], dim=-1)


@pytest.mark.parametrize("chunk", [3, 10_000])
def test_compare_equals_the_float64_definition_of_every_figure(
    context: RunContext, text: Packed, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundry.engine.evaluate.compare.chunk_tokens", lambda *_: chunk)
    student, teacher = tiny.new_model(ffn=32, seed=3), tiny.new_model(seed=4)
    found = compare(student, teacher, text, context, batch_rows=2)
    log_q_TV, log_p_TV = log_probabilities(student, text), log_probabilities(teacher, text)
    labels_T = text.batch(slice(None)).labels_BS[text.targets_NS]
    nats = -log_q_TV[torch.arange(len(labels_T)), labels_T].sum()
    kl = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum()
    agreed = (log_q_TV.argmax(-1) == log_p_TV.argmax(-1)).sum()
    assert found.tokens == len(labels_T) == text.counted_tokens
    assert found.held_out_loss == pytest.approx(float(nats) / len(labels_T), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(float(nats) / len(labels_T)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(float(nats) / math.log(2) / text.bytes, rel=1e-6)
    assert found.kl_to_teacher == pytest.approx(float(kl) / len(labels_T), rel=1e-5)
    assert found.top1_agreement_ratio == pytest.approx(float(agreed) / len(labels_T))
    near = (log_q_TV.topk(5, dim=-1).indices == log_p_TV.argmax(-1)[:, None]).any(dim=-1).sum()
    assert found.top5_agreement_ratio == pytest.approx(float(near) / len(labels_T))
    assert float(agreed) < float(near) < len(labels_T), "the case tells the two apart"


def test_compare_knows_the_part_of_every_document_when_rows_mix_and_cut_them(context: RunContext) -> None:
    tokenizer = tiny.new_tokenizer()
    documents = [Document(key=str(n), text=tiny.sentence(n, 6 + 9 * n)) for n in range(5)]
    text = pack(documents, tokenizer, 24)
    student, teacher = tiny.new_model(ffn=32, seed=3), tiny.new_model(seed=4)
    found = compare(student, teacher, text, context)
    per = found.per_document
    assert per is not None and len(per.tokens_D) == 5
    assert per.tokens_D.sum() == found.tokens and per.bytes_D.sum() == text.bytes
    assert per.nats_D.sum() / found.tokens == pytest.approx(found.held_out_loss)
    assert per.kl_D.sum() / found.tokens == pytest.approx(found.kl_to_teacher)
    alone = pack(documents[:1], tokenizer, 24)
    first = compare(student, teacher, alone, context)
    assert first.tokens == per.tokens_D[0], "the first document begins a row and fits into it"
    assert alone.bytes == per.bytes_D[0]
    assert per.nats_D[0] == pytest.approx(first.held_out_loss * first.tokens, rel=1e-5)


def test_compare_finds_no_distance_when_a_model_is_its_own_teacher(context: RunContext, text: Packed) -> None:
    model = tiny.new_model()
    found = compare(model, model, text, context)
    assert found.kl_to_teacher == pytest.approx(0, abs=1e-7)
    assert found.top1_agreement_ratio == 1


def test_compare_leaves_closeness_open_when_there_is_no_teacher(context: RunContext, text: Packed) -> None:
    found = compare(tiny.new_model(), None, text, context)
    assert found.kl_to_teacher is None
    assert found.top1_agreement_ratio is None


def test_compare_is_close_to_float32_when_products_run_in_bfloat16(
    context: RunContext, bf16_context: RunContext, text: Packed
) -> None:
    model = tiny.new_model()
    exact, rounded = compare(model, None, text, context), compare(model, None, text, bf16_context)
    assert rounded.held_out_loss == pytest.approx(exact.held_out_loss, abs=0.02)


def test_compare_refuses_two_vocabularies(context: RunContext, text: Packed) -> None:
    with pytest.raises(DamagedCheckpoint, match="the student predicts 320 tokens and its teacher 384"):
        compare(tiny.new_model(), tiny.new_model(vocabulary=384), text, context)


def test_compare_stops_when_asked(context: RunContext, heard: Heard, text: Packed) -> None:
    heard.stop_after = 0
    with pytest.raises(Stopped):
        compare(tiny.new_model(), None, text, context)


def test_chunk_never_holds_a_batch_of_a_large_vocabulary() -> None:
    assert products.chunk_tokens(128_256, torch.device("cpu")) == 64
    assert products.chunk_tokens(4096, torch.device("cpu")) == 256
