"""Half a symmetric matrix says what the whole one says."""

import pytest
import torch

from foundry.engine.prune.symmetric import Symmetric, SymmetricSum, panel_bytes


@pytest.mark.parametrize("channels", [1, 7, 1023, 1024, 1025, 2100])
def test_panels_give_the_sum_of_outer_products_back(channels: int) -> None:
    rows_TC = torch.randn(24, channels, generator=torch.Generator().manual_seed(0))
    total = SymmetricSum(channels, torch.device("cpu"))
    for part_TC in rows_TC.split(10):
        total.add(part_TC)
    panels = total.tensors("gram")
    found_CC = Symmetric(panels.values).whole()
    wanted_CC = rows_TC.double().T @ rows_TC.double()
    assert list(panels) == [f"gram.{number}" for number in range(len(panels))]
    assert torch.allclose(found_CC.double(), wanted_CC, atol=1e-4)
    assert panel_bytes(channels) == sum(panel.nbytes for panel in panels.values())


def test_panels_of_a_wide_matrix_take_little_more_than_half_of_it() -> None:
    assert panel_bytes(14_336) < 0.55 * 4 * 14_336**2
