"""Files of ours in real llama.cpp, against transformers on the same weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from foundry.engine.context import Stopped
from foundry.engine.export import plain
from foundry.engine.export.apart import LLAMACPP, ask
from foundry.engine.export.exam import hard_texts
from foundry.engine.export.gguf import write_gguf
from foundry.engine.export.llamacpp import answer
from foundry.engine.export.runtime import Questions
from foundry.engine.export.verify import compare_answers
from foundry.engine.export.vocabulary import vocabulary_of
from foundry.engine.models import load_tokenizer
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from tests.export_questions import about
from tests.integration.export.conftest import Demo
from tests.tiny import new_model, save
from tests.trained_tokenizers import BYTE_LEVEL, TEXTS, byte_fallback, byte_level, changed

pytestmark = pytest.mark.integration
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
TOKENIZERS = {
    **{name: (byte_level, name) for name in BYTE_LEVEL},
    "prefix": (byte_fallback, True),
    "no prefix": (byte_fallback, False),
}


def test_f16_continues_and_scores_as_transformers_does(demo: Demo) -> None:
    answers = ask(LLAMACPP, about(demo.exam, demo.written("f16")))
    pairs = list(zip(answers.continuations, demo.reference.continuations, strict=True))
    assert [len(theirs.tokens) for _, theirs in pairs] == [32] * 3
    assert all(mine.tokens == theirs.tokens for mine, theirs in pairs)
    difference = np.concatenate(answers.losses) - np.concatenate(demo.reference.losses)
    assert abs(difference.mean()) < 0.0005 and np.abs(difference).max() < 0.05
    assert compare_answers("gguf:f16", answers, demo.reference, demo.exam).top1_ratio > 0.995


@pytest.mark.parametrize(("quantisation", "loss_nats", "top1_ratio"), [("q8_0", 0.005, 0.97), ("q4_k_m", 0.06, 0.85)])
def test_quantised_files_lose_little_on_a_trained_model(
    quantisation: str, loss_nats: float, top1_ratio: float, demo: Demo
) -> None:
    answers = ask(LLAMACPP, about(demo.exam, demo.written(quantisation)))
    findings = compare_answers(f"gguf:{quantisation}", answers, demo.reference, demo.exam)
    assert abs(findings.loss_difference) < loss_nats
    assert findings.top1_ratio > top1_ratio


def test_runtime_reports_time_and_memory(demo: Demo) -> None:
    path = demo.written("f16")
    answers = ask(
        LLAMACPP, Questions(model=str(path), speed_prompt_tokens=32, speed_decode_tokens=8, context_tokens=256)
    )
    assert answers.runtime.startswith("xllamacpp ") and answers.context_tokens == 256
    assert answers.load_ms > 0 and answers.prompt_tokens_per_s > 0 and answers.decode_tokens_per_s > 0
    # The test's own process, with torch, is several times as large: it must not be counted.
    assert path.stat().st_size < answers.peak_memory_bytes < path.stat().st_size + 120_000_000


@pytest.mark.parametrize(("make", "kind"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_llamacpp_cuts_hard_text_as_the_tokenizer_does(make: Any, kind: Any, tmp_path: Path) -> None:
    tokenizer = make(kind) if make is byte_level else make(prefix=kind)
    assert cut_differently(tokenizer, tmp_path) == []


def test_llamacpp_differs_from_metaspace_only_where_the_vocabulary_says_so(tmp_path: Path) -> None:
    tokenizer = changed(byte_fallback(prefix=True), normalizer=None, pre_tokenizer=METASPACE)
    vocabulary = vocabulary_of(tokenizer, len(tokenizer))
    different = cut_differently(tokenizer, tmp_path)
    assert " leading space" in different
    assert all(vocabulary.is_cut_otherwise(text) for text in different)


def test_llamacpp_differs_from_nfc_only_where_the_vocabulary_says_so(tmp_path: Path) -> None:
    tokenizer = changed(byte_level("qwen2"), normalizer={"type": "NFC"})
    vocabulary = vocabulary_of(tokenizer, len(tokenizer))
    different = cut_differently(tokenizer, tmp_path)
    assert len(different) == 1 and "e\u0301" in different[0] and vocabulary.is_cut_otherwise(different[0])


def test_llamacpp_cuts_hard_text_as_gemmas_pre_tokenizer_does(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    assert cut_differently(changed(byte_fallback(prefix=False), pre_tokenizer=split), tmp_path) == []


def cut_differently(tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[str]:
    """The texts whose ids in llama.cpp are not the tokenizer's, with and without the special tokens it adds.

    What ids are as text is the same in both for every text.
    """
    checkpoint = open_checkpoint(save(folder / "model", new_model(vocabulary=len(tokenizer)), tokenizer))
    path = folder / "tokenizer.gguf"
    write_gguf(checkpoint, vocabulary_of(tokenizer, len(tokenizer)), path, quantisation="f16", name="x")
    texts = [*hard_texts(tokenizer), *(text[:3000] for text in TEXTS)]
    answers = answer(Questions(model=str(path), texts=texts))
    as_is = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    assert answers.texts_back == [tokenizer.decode(ids, **as_is) for ids in answers.bare_token_ids]
    expected = (
        [tokenizer(t)["input_ids"] for t in texts],
        [tokenizer.encode(t, add_special_tokens=False) for t in texts],
    )
    found = answers.token_ids, answers.bare_token_ids
    return [t for i, t in enumerate(texts) if any(f[i] != e[i] for f, e in zip(found, expected, strict=True))]


SHAPES: dict[str, dict[str, Any]] = {
    "untied": {},
    "head size of its own": {"hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 1, "head_dim": 24, "tied": True},
    "no multiple of 256": {"hidden": 320, "ffn": 448, "heads": 8, "kv_heads": 2, "head_dim": 32},
    "no multiple of 32": {"hidden": 40, "ffn": 50, "heads": 4, "kv_heads": 2, "head_dim": 10},
    "biases": {"hidden": 96, "ffn": 160, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        }
    },
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 20_000.0, "factor": 4.0}},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_f16_scores_as_transformers_does_for_every_shape_and_all_types_load(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    model = new_model(**shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif parameter.ndim == 2:  # logits of one size for every width
                parameter.mul_((32 / model.config.hidden_size) ** 0.5)
    checkpoint = open_checkpoint(save(tmp_path / "model", model.bfloat16()))
    passage = np.random.default_rng(0).integers(1, 320, 64).tolist()
    expected, _ = plain.score(model.float(), passage)
    found = {q: losses_of(checkpoint, q, passage, tmp_path) for q in ("f16", "q4_k_m")}
    assert np.abs(np.subtract(found["f16"], expected)).max() < 0.05
    assert abs(np.mean(found["f16"]) - np.mean(expected)) < 0.005
    assert np.isfinite(found["q4_k_m"]).all()


def losses_of(checkpoint: Checkpoint, quantisation: str, passage: list[int], folder: Path) -> list[float]:
    vocabulary = vocabulary_of(load_tokenizer(checkpoint.folder), checkpoint.shape.vocab)
    path = folder / f"{quantisation}.gguf"
    write_gguf(checkpoint, vocabulary, path, quantisation=quantisation, name="x")
    return answer(Questions(model=str(path), passages=[passage])).losses[0]


def test_check_rejects_a_file_whose_rotary_rows_were_left_in_place(demo: Demo) -> None:
    family = demo.checkpoint.family
    rows = tuple(weight.model_copy(update={"gguf_permute": None}) for weight in family.weights)
    wrong = Checkpoint(**{**vars(demo.checkpoint), "family": family.model_copy(update={"weights": rows})})
    answers = ask(LLAMACPP, about(demo.exam, demo.written("f16", wrong)))
    with pytest.raises(ExportFailed, match="continues a prompt differently"):
        compare_answers("gguf:f16", answers, demo.reference, demo.exam)
    with pytest.raises(ExportFailed, match="held-out loss differs"):
        compare_answers("gguf:q4_k_m", answers, demo.reference, demo.exam)


def test_asking_about_a_damaged_file_gives_llamacpps_own_words(demo: Demo) -> None:
    path = demo.written("f16")
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ExportFailed, match=r"demo-f16\.gguf: the runtime refused it.*file bounds"):
        ask(LLAMACPP, Questions(model=str(path)))


def test_asking_ends_at_once_when_the_run_is_stopped_and_in_time_when_it_hangs(demo: Demo) -> None:
    questions = about(demo.exam, demo.written("q8_0"))
    with pytest.raises(Stopped):
        ask(LLAMACPP, questions, should_stop=lambda: True)
    with pytest.raises(ExportFailed, match="did not answer in time"):
        ask(LLAMACPP, questions, timeout_s=0.05)
