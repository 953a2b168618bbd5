import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from gguf.quants import quantize as quantize_in_numpy

from foundry.engine.export import quantize as module
from foundry.engine.export.quantize import quantize
from foundry.errors import ExportFailed
from foundry.spec.formats import GgufType, bytes_of

TYPES: dict[GgufType, float] = {  # largest root mean square error, as a share of the values' own
    "F32": 0.0, "F16": 3e-4, "Q8_0": 0.007, "Q6_K": 0.02, "Q5_K": 0.04, "Q4_K": 0.08, "Q5_1": 0.045, "Q5_0": 0.05,
}  # fmt: skip


def values(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


def read_back(data: np.ndarray, kind: GgufType) -> np.ndarray:
    return dequantize(data, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", TYPES)
def test_quantize_comes_back_within_the_types_error(kind: GgufType) -> None:
    original = values(24, 512)
    data = quantize(original, kind)
    error = read_back(data, kind).astype(np.float64) - original.numpy()
    assert data.nbytes == bytes_of(original.numel(), kind)
    assert np.sqrt((error**2).mean()) <= TYPES[kind] * 0.02


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q5_0", "Q5_1"])
def test_quantize_gives_the_bytes_of_the_gguf_package_where_that_can_quantise(kind: GgufType) -> None:
    original = values(16, 256)
    expected = quantize_in_numpy(original.numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(quantize(original, kind), expected.view(np.uint8))


def test_quantize_gives_the_same_bytes_in_one_block_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    original = values(40, 256)
    whole = quantize(original, "Q4_K")
    monkeypatch.setattr(module, "_BLOCK_VALUES", 3 * 256)
    assert np.array_equal(quantize(original, "Q4_K"), whole)


def test_quantize_takes_bfloat16_and_vectors() -> None:
    vector = torch.tensor([1.0, -2.5, 0.125], dtype=torch.bfloat16)
    assert quantize(vector, "F32").view(np.float32).tolist() == [[1.0, -2.5, 0.125]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_quantize_refuses_a_weight_that_is_not_a_number(bad: float) -> None:
    broken = values(2, 32)
    broken[1, 3] = bad
    with pytest.raises(ExportFailed, match="not a finite number"):
        quantize(broken, "Q8_0")


def test_quantize_refuses_a_weight_beyond_f16_but_keeps_it_in_f32() -> None:
    large = torch.full((1, 32), 70_000.0)
    with pytest.raises(ExportFailed, match="70000"):
        quantize(large, "F16")
    assert quantize(large, "F32").view(np.float32).max() == 70_000
