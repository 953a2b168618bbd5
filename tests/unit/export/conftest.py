from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from tests.tiny import new_model, save

Make = Callable[..., Checkpoint]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Make:
    """A genuine tiny model on disk, opened; its biases and norms are not the zeros and ones of a fresh model."""

    def make(dtype: torch.dtype = torch.bfloat16, **shape: object) -> Checkpoint:
        model = new_model(**shape)  # type: ignore[arg-type]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.3)
                elif "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        return open_checkpoint(save(tmp_path / "model", model.to(dtype)))

    return make
