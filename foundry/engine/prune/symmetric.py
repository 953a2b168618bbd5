"""Sums of x x^T, of which the half on and above the diagonal is computed, held and stored.

T rows of x, C channels, P rows of a panel.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_PANEL = 1024
"""Rows of a panel: enough for a fast matrix product, few enough that little below the diagonal is computed with it."""


class SymmetricSum:
    """Accumulates sum x x^T in float32, as panels [P, C - start] that begin at the diagonal."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self._panels = [
            torch.zeros(min(_PANEL, channels - start), channels - start, dtype=torch.float32, device=device)
            for start in range(0, channels, _PANEL)
        ]

    def add(self, x_TC: Tensor) -> None:
        """`x` in float32."""
        for number, panel in enumerate(self._panels):
            start = number * _PANEL
            panel.addmm_(x_TC[:, start : start + _PANEL].T, x_TC[:, start:])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The panels, numbered."""
        return {f"{name}.{number}": panel for number, panel in enumerate(self._panels)}


def whole(panels: Iterable[Tensor]) -> Tensor:
    """The matrix [C, C] of panels in their order."""
    matrix_CC = torch.empty(0)
    start = 0
    for panel in panels:  # the first is as wide as the matrix
        matrix_CC = matrix_CC if start else torch.empty(panel.shape[1], panel.shape[1], dtype=panel.dtype)
        stop = start + len(panel)
        matrix_CC[start:stop, start:] = panel
        matrix_CC[stop:, start:stop] = panel[:, len(panel) :].T
        start = stop
    return matrix_CC


def panel_bytes(channels: int) -> int:
    """What the panels of one sum take."""
    return sum(4 * min(_PANEL, channels - start) * (channels - start) for start in range(0, channels, _PANEL))
