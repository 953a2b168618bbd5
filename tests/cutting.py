"""A teacher opened for cutting on a few random rows."""

from pathlib import Path

import torch

from foundry.engine.context import RunContext
from foundry.engine.packed import Packed
from foundry.engine.prune.cutting import Cutting
from foundry.engine.prune.texts import Texts
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.stages import Prune

CONTEXT = RunContext(emit=lambda event: None, device=torch.device("cpu"), dtype=torch.float32, seed=0)
IDS = torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(1))
_CHOICE = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(2))


def packed(ids: torch.Tensor) -> Packed:
    """Rows that are one document each; every prediction of a token that is there counts."""
    counts = torch.ones_like(ids, dtype=torch.bool)
    counts[:, -1] = False
    return Packed(ids, torch.arange(ids.shape[1]).expand_as(ids), counts, bytes=0)


def opened(folder: Path, options: Prune | None = None, context: RunContext = CONTEXT) -> Cutting:
    """Calibrated on `IDS`; statistics lie beside the folder."""
    texts = Texts.of(packed(IDS), packed(_CHOICE))
    scratch = folder.with_name(folder.name + "-scratch")
    return Cutting(open_checkpoint(folder), texts, options or Prune(), scratch, context)
