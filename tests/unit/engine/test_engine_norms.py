"""Fused norms give what a family's own norms give, and are taken only where they do."""

import pytest
import torch

from foundry.engine.norms import fuse_norms
from foundry.spec.family import families
from tests.families import FAMILY_NAMES, genuine

IDS = torch.arange(40).reshape(2, 20)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_fused_norms_change_nothing_but_rounding(family: str) -> None:
    model = genuine(family)
    with torch.no_grad():
        expected = model(IDS).logits
        with_gradients = torch.enable_grad()(model)(IDS).logits.detach()
        fused = fuse_norms(model)
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(IDS).logits.detach(), with_gradients)
    own = families()[family]
    assert (fused > 0) == (own.norm == "rms" and own.norm_offset == 0)


def test_fused_norms_follow_a_weight_in_training() -> None:
    model = genuine("llama")
    fuse_norms(model)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
        doubled = model(IDS).logits
        model.model.norm.weight.div_(2)
        torch.testing.assert_close(doubled, 2 * model(IDS).logits, rtol=1e-4, atol=1e-4)
