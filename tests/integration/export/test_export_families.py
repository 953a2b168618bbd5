"""A genuine tiny model of every family in real llama.cpp, against transformers on the same weights.

llama.cpp answers in this process: what a process of its own is for stands in test_export_llamacpp.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry.engine.export import plain
from foundry.engine.export.adapter import write_adapter
from foundry.engine.export.gguf import write_gguf
from foundry.engine.export.llamacpp import answer
from foundry.engine.export.runtime import Questions
from foundry.engine.export.vocabulary import vocabulary_of
from foundry.engine.lora import attach, save_adapter
from foundry.engine.models import load_model
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.adapter import adapter_bytes
from foundry.spec.family import families
from tests.families import FAMILY_NAMES, NEEDED, VOCABULARY, genuine, save_genuine
from tests.students import cut
from tests.tiny import new_tokenizer

pytestmark = pytest.mark.integration
WRITTEN = [name for name in FAMILY_NAMES if families()[name].gguf_architecture]
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2, every third layer full": ("gemma2", {"layers": 5, "layer_types": ["sliding_attention"] * 2
        + ["full_attention"] + ["sliding_attention"] * 2}),
    "gemma3, all layers in a window": ("gemma3", {"layers": 2, "tied": False}),
    "gemma3, linear rope": ("gemma3", {"layers": 2, "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50_000.0}}}),
    "gpt_neox, one branch after the other": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 0.5}),
    "granite, biases, tied": ("granite", {"attention_bias": True, "mlp_bias": True, "tied": True}),
    "olmo3, yarn": ("olmo3", {"layers": 5, "rope_parameters": {"full_attention": YARN,
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}),
    "phi3, half of a head turned, tied": ("phi3", {"partial_rotary_factor": 0.5, "tied": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3, yarn": ("qwen3", {"rope_parameters": YARN}),
}  # fmt: skip


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every family, with heads that do not fill hidden where llama.cpp takes that, and what else can differ."""
    own = {
        name: not (families()[name].gguf_heads_fill_hidden or families()[name].heads_fill_hidden) for name in WRITTEN
    }
    return {name: (name, {"hidden": 48 if own[name] else 32, **NEEDED.get(name, {})}) for name in WRITTEN} | MORE


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_cut_from_every_family_scores_and_continues_in_llamacpp_as_in_transformers(
    name: str, tmp_path: Path
) -> None:
    student = cut(name, tmp_path)
    passage = np.random.default_rng(0).integers(1, VOCABULARY, 60).tolist()
    model = load_model(tmp_path / "model", dtype=torch.float32, device="cpu")
    expected, _ = plain.score(model, passage)
    theirs = plain.greedy(model, passage[:24], 8)
    path = tmp_path / "x.gguf"
    write_gguf(student, vocabulary_of(new_tokenizer(), VOCABULARY), path, quantisation="f16", name="x")
    answers = answer(Questions(model=str(path), passages=[passage], prompts=[passage[:24]], continue_tokens=8))
    differences = np.subtract(answers.losses[0], expected)
    assert np.abs(differences).max() < 0.05 and abs(differences.mean()) < 0.005
    mine = answers.continuations[0].tokens
    apart = next((i for i, pair in enumerate(zip(mine, theirs.tokens, strict=True)) if len(set(pair)) > 1), None)
    assert apart is None or theirs.margins[apart] < 0.1  # random weights have near ties


@pytest.mark.parametrize(("name", "changes"), cases().values(), ids=cases())
def test_f16_scores_as_transformers_does_in_every_family(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    passage = np.random.default_rng(0).integers(1, VOCABULARY, 60).tolist()
    expected, found = losses(name, changes, passage, "f16", tmp_path)
    assert np.abs(np.subtract(found, expected)).max() < 0.05
    assert abs(np.mean(found) - np.mean(expected)) < 0.005


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "mixtral"])
def test_quantised_files_with_fused_or_stacked_tensors_score_as_transformers_does(name: str, tmp_path: Path) -> None:
    passage = np.random.default_rng(0).integers(1, VOCABULARY, 60).tolist()
    expected, found = losses(name, NEEDED.get(name, {}), passage, "q8_0", tmp_path)
    assert abs(np.mean(found) - np.mean(expected)) < 0.05


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_an_adapter_changes_llamacpps_answers_as_it_does_pefts(name: str, tmp_path: Path) -> None:
    passage = np.random.default_rng(0).integers(1, VOCABULARY, 60).tolist()
    save_genuine(tmp_path / "model", name, tied=False if name == "gpt_neox" else None)
    checkpoint = open_checkpoint(tmp_path / "model")
    model = load_model(tmp_path / "model", dtype=torch.float32, device="cpu")
    without, _ = plain.score(model, passage)
    adapted = attach(model, rank=4, alpha=8, dropout=0.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for n, p in adapted.named_parameters() if "lora_B" in n):
        parameter.data.normal_(0, 0.3, generator=generator)
    expected, _ = plain.score(adapted.get_base_model(), passage)
    save_adapter(adapted, tmp_path / "adapter")
    write_gguf(
        checkpoint, vocabulary_of(new_tokenizer(), VOCABULARY), tmp_path / "x.gguf", quantisation="f16", name="x"
    )
    write_adapter(checkpoint, tmp_path / "adapter", tmp_path / "adapter.gguf")
    planned = adapter_bytes(checkpoint.family, checkpoint.shape, 4, checkpoint.present)
    for written in ("adapter.gguf", "adapter/adapter_model.safetensors"):
        assert planned / 2 < (tmp_path / written).stat().st_size <= planned  # names weigh much where ranks are small
    asked = Questions(model=str(tmp_path / "x.gguf"), adapter=str(tmp_path / "adapter.gguf"), passages=[passage])
    found = answer(asked).losses[0]
    assert np.abs(np.subtract(expected, without)).max() > 1
    assert np.abs(np.subtract(found, expected)).max() < 0.05


def losses(
    name: str, changes: dict[str, Any], passage: list[int], quantisation: str, folder: Path
) -> tuple[list[float], list[float]]:
    """What transformers loses on a passage, and what llama.cpp does."""
    model = genuine(name, **changes).bfloat16()
    model.save_pretrained(folder / "model")
    expected, _ = plain.score(model.float(), passage)
    path, checkpoint = folder / "x.gguf", open_checkpoint(folder / "model")
    write_gguf(checkpoint, vocabulary_of(new_tokenizer(), VOCABULARY), path, quantisation=quantisation, name="x")
    return expected, answer(Questions(model=str(path), passages=[passage])).losses[0]
