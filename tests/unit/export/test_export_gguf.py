import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from safetensors.torch import load_file

from foundry.engine.export.gguf import write_gguf
from foundry.engine.export.vocabulary import vocabulary_of
from foundry.engine.models import load_tokenizer
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.formats import FORMATS, gguf_type_of, parse_format, weight_bytes
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


def write(checkpoint: Checkpoint, path: Path, quantisation: str = "f16") -> gguf.GGUFReader:
    vocabulary = vocabulary_of(load_tokenizer(checkpoint.folder), checkpoint.shape.vocab)
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
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10_000.0}}, "rope scaling 'yarn'"),
    ],
    ids=["activation", "rope"],
)
def test_gguf_refuses_what_llamacpp_would_compute_otherwise(
    config: dict[str, Any], reason: str, make_checkpoint: Make, tmp_path: Path
) -> None:
    with pytest.raises(ExportFailed, match=reason):
        write(make_checkpoint(**config), tmp_path / "tiny.gguf")
    assert not list(tmp_path.glob("*.gguf*")) + list(tmp_path.glob(".*gguf*"))


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
