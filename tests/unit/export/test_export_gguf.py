import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from foundry.engine.export.gguf import check_config, write_gguf
from foundry.engine.export.vocabulary import vocabulary_of
from foundry.engine.models import load_tokenizer
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from foundry.spec.family import families
from foundry.spec.formats import FORMATS, gguf_type_of, header_bytes, parse_format, weight_bytes
from tests.checkpoints import LLAMA, write_checkpoint
from tests.families import FAMILY_NAMES, NEEDED, genuine, save_genuine
from tests.tiny import new_tokenizer
from tests.unit.export.conftest import Make

QUANTISATIONS = [form.removeprefix("gguf:") for form in FORMATS if form.startswith("gguf:")]
SHAPES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tied": True},
    "wide": {"hidden": 256, "ffn": 512, "heads": 8, "head_dim": 32},
    "mixed": {"hidden": 320, "ffn": 448, "heads": 8, "head_dim": 24, "layers": 9, "tied": True},
    "narrow": {"hidden": 40, "ffn": 50, "heads": 4, "head_dim": 10},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def write(
    checkpoint: Checkpoint, path: Path, quantisation: str = "f16", tokenizer: PreTrainedTokenizerFast | None = None
) -> gguf.GGUFReader:
    vocabulary = vocabulary_of(tokenizer or load_tokenizer(checkpoint.folder), checkpoint.shape.vocab)
    write_gguf(checkpoint, vocabulary, path, quantisation=quantisation, name="tiny")
    return gguf.GGUFReader(path)


def field(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gguf_has_exactly_the_planned_bytes_and_types(
    shape: dict[str, Any], make_checkpoint: Make, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(**shape)
    for quantisation in QUANTISATIONS:
        reader = write(checkpoint, tmp_path / "tiny.gguf", quantisation)
        planned = weight_bytes(
            checkpoint.family, checkpoint.shape, parse_format(f"gguf:{quantisation}"), checkpoint.present
        )
        assert sum(int(tensor.n_bytes) for tensor in reader.tensors) == planned
        assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
            tensor.weight.gguf.format(layer=tensor.layer): gguf_type_of(tensor, checkpoint.shape, quantisation)
            for tensor in checkpoint.family.tensors(checkpoint.shape, checkpoint.present)
        }


@pytest.mark.parametrize(("quantisation", "error"), [("f16", 0.001), ("q8_0", 0.01), ("q4_k_m", 0.1)])
def test_gguf_holds_the_weights_with_rotary_rows_interleaved(
    quantisation: str, error: float, make_checkpoint: Make, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(hidden=256, ffn=512, heads=8, kv_heads=2, head_dim=32, attention_bias=True)
    reader = write(checkpoint, tmp_path / "tiny.gguf", quantisation)
    found = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    originals = load_file(checkpoint.folder / "model.safetensors")
    for tensor in checkpoint.family.tensors(checkpoint.shape, checkpoint.present):
        expected = originals[tensor.name].float().numpy()
        if tensor.weight.gguf_permute:  # row 2i of a head is i of its first half, row 2i + 1 is i of its second
            order = [
                head * 32 + half * 16 + i for head in range(len(expected) // 32) for i in range(16) for half in (0, 1)
            ]
            expected = expected[order]
        difference = found[tensor.weight.gguf.format(layer=tensor.layer)].reshape(expected.shape) - expected
        assert np.sqrt((difference**2).mean()) <= error * np.sqrt((expected**2).mean()), tensor.name


def test_gguf_says_what_the_config_says(make_checkpoint: Make, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    checkpoint = make_checkpoint(heads=4, kv_heads=2, head_dim=16, rope_parameters=rope, rms_norm_eps=1e-3)
    reader = write(checkpoint, tmp_path / "tiny.gguf", "q5_k_m")
    expected = {
        "general.architecture": "llama", "general.name": "tiny", "general.file_type": gguf.LlamaFileType.MOSTLY_Q5_K_M,
        "llama.context_length": 64, "llama.embedding_length": 32, "llama.block_count": 2,
        "llama.feed_forward_length": 64, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16, "llama.attention.value_length": 16, "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500_000.0, "llama.vocab_size": 320, "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {key: field(reader, key) for key in expected} == expected
    assert field(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-3)


def test_gguf_divides_the_frequencies_of_llama3_scaling(make_checkpoint: Make, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    reader = write(make_checkpoint(head_dim=8, rope_parameters=rope), tmp_path / "tiny.gguf")
    factors = next(tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    # Wavelengths 6.3, 63, 628 and 6283: below 256 / 4 kept, above 256 / 1 divided by 8.
    assert factors.tolist() == pytest.approx([1, 1 / ((1 - share(62.83)) / 8 + share(62.83)), 8, 8], rel=1e-3)


def share(wavelength: float) -> float:
    return min(1.0, (256 / wavelength - 1) / 3)


def test_gguf_names_linear_scaling(make_checkpoint: Make, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    reader = write(make_checkpoint(rope_parameters=rope), tmp_path / "tiny.gguf")
    assert (field(reader, "llama.rope.scaling.type"), field(reader, "llama.rope.scaling.factor")) == ("linear", 4.0)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}},
            "rope scaling 'dynamic'",
        ),
    ],
    ids=["activation", "rope"],
)
def test_gguf_refuses_what_llamacpp_would_compute_otherwise(
    config: dict[str, Any], reason: str, make_checkpoint: Make, tmp_path: Path
) -> None:
    with pytest.raises(ExportFailed, match=reason):
        write(make_checkpoint(**config), tmp_path / "tiny.gguf")
    assert not list(tmp_path.glob("*.gguf*")) + list(tmp_path.glob(".*gguf*"))


S, F = "sliding_attention", "full_attention"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no architecture": ("ministral", {}, "no architecture that computes what ministral does"),
    "activation": ("starcoder2", {"hidden_act": "relu"}, "hidden_act 'relu'; llama.cpp's starcoder2 knows 'gelu'"),
    "activation under another name": ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
    "biases it does not read": ("qwen3", {"attention_bias": True}, "attention_bias True"),
    "biases it needs": ("starcoder2", {"use_bias": False}, "use_bias False"),
    "clipping": ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0; llama.cpp's olmoe knows none"),
    "heads of Minitron 8B": ("nemotron", {"hidden": 48}, "4 heads of 8 do not fill a hidden size of 48"),
    "weights of experts": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob False"),
    "untied": ("gemma2", {"tied": False}, "lm_head.weight has no place in llama.cpp's gemma2"),
    "tied": ("olmo2", {"tied": True}, "tie_word_embeddings True"),
    "scores": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    "cap": ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0; .* knows none"),
    "no cap": ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is None"),
    "windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 16}, "use_sliding_window True"),
    "layers with a window": ("qwen3", {"layer_types": [F, S], "sliding_window": 16}, "layer_types is not .* layer 1"),
    "layers that do not turn": ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is not .* in layer 1"),
    "no pattern": ("gemma3", {"layers": 4, "layer_types": [S, F, F, S]}, "layer_types is sffs"),
    "all full": ("olmo3", {"layer_types": [F, F]}, "layer_types is ff"),
    "heads": ("phi3", {"hidden": 48}, "4 heads of 8 do not fill a hidden size of 48"),
    "longrope": (
        "phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 32}, "rope scaling 'longrope'"
    ),
    "yarn of its own": ("llama", {"rope_parameters": {**YARN, "attention_factor": 2.0}}, "'attention_factor': 2.0"),
    "two thetas": (
        "olmo3", {"rope_parameters": {S: {"rope_type": "default", "rope_theta": 1e3}, F: YARN}}, "rope_theta is 1000"
    ),
    "scaled windows": ("gemma3", {"rope_parameters": {S: YARN, F: {"rope_type": "default"}}}, "'yarn' in layers"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_gguf_refuses_by_the_family_table(name: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExportFailed, match=reason):
        config = genuine(name, **changes).config.to_dict()
        check_config(config, families()[name], families()[name].shape_of(config))


WRITTEN = [name for name in FAMILY_NAMES if families()[name].gguf_architecture]


@pytest.mark.parametrize("name", WRITTEN)
def test_gguf_of_every_family_has_exactly_the_planned_bytes(name: str, tmp_path: Path) -> None:
    save_genuine(tmp_path / "model", name, **NEEDED.get(name, {}))
    checkpoint = open_checkpoint(tmp_path / "model")
    path = tmp_path / "tiny.gguf"
    for quantisation in ("f16", "q4_k_m"):
        reader = write(checkpoint, path, quantisation, new_tokenizer())
        form = parse_format(f"gguf:{quantisation}")
        planned = weight_bytes(checkpoint.family, checkpoint.shape, form, checkpoint.present)
        assert sum(int(tensor.n_bytes) for tensor in reader.tensors) == planned


@pytest.mark.parametrize("name", ["mistral", "mixtral", "phi3", "starcoder2"])
def test_gguf_context_ends_with_a_window_that_llamacpp_does_not_know(name: str, tmp_path: Path) -> None:
    for window, expected in ((16, 16), (None, 64)):
        save_genuine(tmp_path / "model", name, sliding_window=window)
        reader = write(open_checkpoint(tmp_path / "model"), tmp_path / "tiny.gguf")
        assert field(reader, f"{families()[name].gguf_architecture}.context_length") == expected


def test_gguf_divides_gemmas_queries_as_its_config_says(tmp_path: Path) -> None:
    model = save_genuine(tmp_path / "model", "gemma3", query_pre_attn_scalar=32)
    reader = write(open_checkpoint(tmp_path / "model"), tmp_path / "tiny.gguf")
    found = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.1.attn_q_norm.weight")
    weight = model.get_parameter("model.layers.1.self_attn.q_norm.weight").detach().numpy()
    assert np.allclose(found, (1 + weight) / 2)  # llama.cpp divides by sqrt(8), the config by sqrt(32)


def test_gguf_leaves_the_old_file_and_nothing_else_when_a_weight_is_not_a_number(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    old = tmp_path / "tiny.gguf"
    old.write_bytes(b"old")
    checkpoint = make_checkpoint()
    entry = checkpoint.tensors["model.layers.1.mlp.up_proj.weight"]
    with entry.file.open("r+b") as file:
        file.seek(entry.start)
        file.write(np.float32(math.nan).tobytes()[2:])  # the upper half of a float32 is its bfloat16
    with pytest.raises(ExportFailed, match=r"up_proj\.weight: a weight is not a finite number"):
        write(checkpoint, old)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["tiny.gguf"]
    assert old.read_bytes() == b"old"


@given(
    hidden=st.sampled_from([32, 40, 96, 256, 288, 320, 512]), ffn=st.sampled_from([24, 64, 256, 352, 768]),
    heads=st.sampled_from([(4, 2), (6, 3), (8, 8)]), head_dim=st.sampled_from([8, 32, 64]), layers=st.integers(1, 9),
    tied=st.booleans(), quantisation=st.sampled_from(QUANTISATIONS),
)  # fmt: skip
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_takes_what_the_planner_counts_whatever_the_shape(
    hidden: int, ffn: int, heads: tuple[int, int], head_dim: int, layers: int, tied: bool, quantisation: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = LLAMA | {
        "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "head_dim": head_dim, "num_hidden_layers": layers, "vocab_size": 320,
        "tie_word_embeddings": tied, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
    }  # fmt: skip
    family = families()["mistral"]
    shape = family.shape_of(config)
    sizes = {tensor.name: tensor.size for tensor in family.tensors(shape)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", config, sizes))
    path, form = tmp_path / "x.gguf", parse_format(f"gguf:{quantisation}")
    write_gguf(checkpoint, vocabulary_of(new_tokenizer(), 320), path, quantisation=quantisation, name="x")
    planned = weight_bytes(family, shape, form)
    assert sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors) == planned
    assert planned < path.stat().st_size < planned + header_bytes(shape, form)
