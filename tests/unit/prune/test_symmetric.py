"""Half a symmetric matrix says what the whole one says."""

import pytest
import torch

from foundry.engine.prune.symmetric import Symmetric, SymmetricSum, panel_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 7, 1023, 1024, 1025, 2100])
def test_panels_give_the_sum_of_outer_products_back(channels: int, dtype: torch.dtype) -> None:
    rows_TC = torch.randn(24, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    total = SymmetricSum(channels, torch.device("cpu"))
    for part_TC in rows_TC.split(10):
        total.add(part_TC)
    panels = total.tensors("gram")
    found_CC = Symmetric(panels.values).whole()
    wanted_CC = rows_TC.double().T @ rows_TC.double()
    assert list(panels) == [f"gram.{number}" for number in range(len(panels))]
    assert torch.allclose(found_CC.double(), wanted_CC, atol=1e-4)
    assert torch.equal(total.diagonal(), found_CC.diagonal())
    assert panel_bytes(channels) == sum(panel.nbytes for panel in panels.values())


def test_panels_of_a_wide_matrix_take_little_more_than_half_of_it() -> None:
    assert panel_bytes(14_336) < 0.55 * 4 * 14_336**2


@pytest.mark.parametrize("channels", [5, 1500, 2100])
def test_parts_are_those_of_the_whole_matrix(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    half_CC = torch.randn(channels, channels, generator=generator)
    matrix_CC = half_CC + half_CC.T
    kept = sorted(torch.randperm(channels, generator=generator)[: channels // 2].tolist())
    gone = sorted(set(range(channels)) - set(kept))
    inner_KK, cross_KR = Symmetric.of(matrix_CC).parts(kept, gone)
    assert torch.equal(inner_KK.triu(), matrix_CC[kept][:, kept].triu())
    assert torch.equal(cross_KR, matrix_CC[kept][:, gone])


@pytest.mark.parametrize("channels", [5, 1500])
def test_inside_is_the_trace_on_the_columns_and_the_whole_trace(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    half_CC = torch.randn(channels, channels, generator=generator)
    matrix_CC, columns_CD = half_CC @ half_CC.T, torch.randn(channels, 3, generator=generator)
    inside, trace = Symmetric.of(matrix_CC).inside(columns_CD)
    wanted = (columns_CD.double().T @ matrix_CC.double() @ columns_CD.double()).trace()
    assert float(inside) == pytest.approx(float(wanted), rel=1e-5)
    assert float(trace) == pytest.approx(float(matrix_CC.double().trace()), rel=1e-12)
