"""What matrices are given, against what goes through a model; and what a quantiser makes of it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from foundry.engine.export.activations import Activations, hear
from foundry.engine.export.imatrix import write_imatrix
from foundry.engine.export.quantize import quantize
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from foundry.spec.formats import GgufType
from tests.families import VOCABULARY, save_genuine

PASSAGES = [np.random.default_rng(seed).integers(1, VOCABULARY, 20).tolist() for seed in range(3)]
TOKENS = 60


def heard(folder: Path, name: str, **changes: Any) -> tuple[Any, Checkpoint, Activations]:
    model = save_genuine(folder / "model", name, **changes)
    checkpoint = open_checkpoint(folder / "model")
    return model, checkpoint, hear(model, checkpoint, PASSAGES)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "gpt_neox", "gemma2", "olmo2"])
def test_every_matrix_that_multiplies_is_heard_in_every_kind_of_family(name: str, tmp_path: Path) -> None:
    _, checkpoint, activations = heard(tmp_path, name)
    family = checkpoint.family
    tensors = {tensor.name: tensor for tensor in family.tensors(checkpoint.shape, checkpoint.present)}
    head = family.embedding if checkpoint.shape.tied else family.head
    multiply = {n for n, t in tensors.items() if t.weight.input_axis is not None and t.weight.role != "head"} | {head}
    assert set(activations) == multiply
    for one, found in activations.items():
        axis = tensors[one].weight.input_axis
        assert len(found.squares_C) == tensors[one].size[-1 if axis is None else axis] and found.tokens == TOKENS
        assert bool((found.squares_C > 0).any())


def test_what_is_heard_is_the_mean_square_of_what_goes_in(tmp_path: Path) -> None:
    model, _, activations = heard(tmp_path, "llama", tied=True)
    with torch.no_grad():
        states = [model(torch.tensor([p]), output_hidden_states=True).hidden_states for p in PASSAGES]
        first = [model.model.layers[0].input_layernorm(state[0])[0] for state in states]
    q = activations["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(q.mean_C, torch.cat(first).square().mean(0), rtol=1e-4)
    last = torch.cat([state[-1][0] for state in states])  # behind the final norm
    assert torch.allclose(activations["model.embed_tokens.weight"].mean_C, last.square().mean(0), rtol=1e-4)


def test_every_expert_hears_the_tokens_that_were_sent_to_it(tmp_path: Path) -> None:
    _, checkpoint, activations = heard(tmp_path, "mixtral")
    for layer in range(checkpoint.shape.layers):
        rows = [w for w in checkpoint.family.weights if w.per_expert]
        names = {w.role: [w.name.format(layer=layer, expert=n) for n in range(checkpoint.shape.experts)] for w in rows}
        for role in ("gate", "up", "down"):
            counts = [activations[name].tokens for name in names[role] if name in activations]
            assert sum(counts) == TOKENS * checkpoint.shape.experts_per_token
        assert all(len(activations[n].squares_C) == checkpoint.shape.ffn for n in names["down"] if n in activations)


def test_the_importance_matrix_is_written_as_llamacpp_keeps_it(tmp_path: Path) -> None:
    _, checkpoint, activations = heard(tmp_path, "mixtral")
    path = tmp_path / "imatrix.gguf"
    write_imatrix(activations, checkpoint, path, data="text.jsonl", chunk_tokens=20)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["text.jsonl"]
    assert (reader.fields["imatrix.chunk_count"].contents(), reader.fields["imatrix.chunk_size"].contents()) == (3, 20)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    q = activations["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(tensors["blk.0.attn_q.weight.in_sum2"], q.squares_C.numpy()[None])
    assert tensors["blk.0.attn_q.weight.counts"].tolist() == [[TOKENS]]
    shape = checkpoint.shape
    assert tensors["blk.1.ffn_down_exps.weight.in_sum2"].shape == (shape.experts, shape.ffn)
    assert tensors["blk.1.ffn_down_exps.weight.counts"].sum() == TOKENS * shape.experts_per_token


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1"])
def test_the_quantiser_makes_small_what_is_multiplied_by_large_inputs(kind: GgufType) -> None:
    generator = torch.Generator().manual_seed(0)
    weights_RC = torch.randn(32, 512, generator=generator) * 0.02
    squares_C = torch.rand(512, generator=generator) ** 8 + 1e-3

    def error(**given: torch.Tensor) -> float:
        back = dequantize(quantize(weights_RC, kind, **given), gguf.GGMLQuantizationType[kind])
        return float((((torch.from_numpy(back.copy()) - weights_RC) ** 2) * squares_C).sum())

    assert error(squares_C=squares_C) < 0.95 * error()


def test_a_matrix_of_other_columns_is_refused_and_dead_columns_are_taken() -> None:
    weights_RC = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ExportFailed, match="255 columns does not fit a tensor of 256"):
        quantize(weights_RC, "Q4_K", torch.ones(255))
    back = dequantize(quantize(weights_RC, "Q4_K", torch.zeros(256)), gguf.GGMLQuantizationType.Q4_K)
    assert np.abs(back - weights_RC.numpy()).mean() < 0.1
