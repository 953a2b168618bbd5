"""The text that a cut is made and chosen on.

N rows of both parts, S tokens of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch

from foundry.engine.packed import Packed

_BATCH_TOKENS = 2048
_BRIEF_TOKENS = 8192
_DEPTH_TOKENS = 2048
CHOICE_TOKENS = 8192


@dataclass(frozen=True)
class Texts:
    """Rows to calibrate and to learn on, and behind them rows to compare candidates on, which nothing else reads.

    Something counts in every row.
    """

    packed: Packed
    calibration_rows: int

    @classmethod
    def of(cls, calibration: Packed, choice: Packed) -> "Texts":
        """Both with rows of one length."""
        both = Packed(
            torch.cat([calibration.ids_NS, choice.ids_NS]),
            torch.cat([calibration.positions_NS, choice.positions_NS]),
            torch.cat([calibration.targets_NS, choice.targets_NS]),
            calibration.bytes + choice.bytes,
        )
        return cls(both, len(calibration))

    @classmethod
    def split(cls, pool: Packed, calibration_tokens: int) -> "Texts":
        """The last tenth of the rows that count for the choice, at most 8192 tokens; the first ones to calibrate on."""
        rows = pool.targets_NS.any(dim=1).nonzero().squeeze(1)
        of_choice = max(1, min(CHOICE_TOKENS // pool.sequence_tokens, len(rows) // 10))
        of_calibration = max(1, calibration_tokens // pool.sequence_tokens)
        # A single row has to serve for both.
        calibration = rows[: min(of_calibration, max(1, len(rows) - of_choice))]
        return cls.of(_rows(pool, calibration), _rows(pool, rows[-of_choice:]))

    @property
    def tokens(self) -> int:
        """Of the calibration."""
        return self.calibration_rows * self.packed.sequence_tokens

    @property
    def calibration(self) -> slice:
        return slice(0, self.calibration_rows)

    @property
    def brief(self) -> slice:
        """The part of the calibration that candidates are repaired on."""
        return slice(0, min(self.calibration_rows, self._rows(_BRIEF_TOKENS)))

    @property
    def choice(self) -> slice:
        return slice(self.calibration_rows, len(self.packed))

    @property
    def depth(self) -> slice:
        """The part of the choice that sets of layers are compared on: there are many, and they differ by much."""
        return slice(self.calibration_rows, min(len(self.packed), self.calibration_rows + self._rows(_DEPTH_TOKENS)))

    def batches(self, rows: slice) -> list[slice]:
        """These rows, about 2048 tokens at a time."""
        step = self._rows(_BATCH_TOKENS)
        return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]

    def inputs(self, rows: slice, device: torch.device) -> dict[str, Any]:
        """What a model takes for these rows."""
        return self.packed.batch(rows, device).model_inputs()

    def labels(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Which positions [B, S] count, and their next tokens [T]."""
        batch = self.packed.batch(rows, device)
        return batch.targets_BS, batch.labels_BS[batch.targets_BS]

    def counted(self, rows: slice) -> int:
        """Predictions that count in these rows."""
        return int(self.packed.targets_NS[rows].sum())

    def _rows(self, tokens: int) -> int:
        return max(1, tokens // self.packed.sequence_tokens)


def _rows(packed: Packed, rows: torch.Tensor) -> Packed:
    return Packed(packed.ids_NS[rows], packed.positions_NS[rows], packed.targets_NS[rows], bytes=0)
