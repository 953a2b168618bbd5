"""Sums of x x^T, of which the half on and above the diagonal is computed, held and stored.

T rows of x, C channels, P rows of a panel, K some of the channels and R others, D columns of something else.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from foundry.engine.products import inner_dtype, product

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
        """`x` in float32 or bfloat16, whose products are exact in float32 either way."""
        rounded = x_TC.dtype == torch.bfloat16
        x_TC = x_TC if rounded and x_TC.is_cuda else x_TC.float()
        with inner_dtype(torch.bfloat16 if rounded else torch.float32, x_TC.device):
            for number, panel in enumerate(self._panels):
                start = number * _PANEL
                panel += product(x_TC[:, start : start + _PANEL].T, x_TC[:, start:])

    def diagonal(self) -> Tensor:
        """The sums of squares [C]."""
        return torch.cat([panel.diagonal() for panel in self._panels])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The panels, numbered."""
        return {f"{name}.{number}": panel for number, panel in enumerate(self._panels)}


class Symmetric:
    """A symmetric matrix [C, C] in panels, of which one at a time is in memory."""

    def __init__(self, panels: Callable[[], Iterable[Tensor]]) -> None:
        """`panels` gives them in their order, as often as it is asked."""
        self._panels = panels

    @classmethod
    def of(cls, matrix_CC: Tensor) -> "Symmetric":
        """Of a matrix that is whole."""
        starts = range(0, len(matrix_CC), _PANEL)
        return cls(lambda: (matrix_CC[start : start + _PANEL, start:] for start in starts))

    def whole(self) -> Tensor:
        """The matrix."""
        matrix_CC = torch.empty(0)
        start = 0
        for panel in self._panels():  # the first is as wide as the matrix
            matrix_CC = matrix_CC if start else panel.new_empty(panel.shape[1], panel.shape[1])
            stop = start + len(panel)
            matrix_CC[start:stop, start:] = panel
            matrix_CC[stop:, start:stop] = panel[:, len(panel) :].T
            start = stop
        return matrix_CC

    def parts(self, kept_K: Sequence[int], gone_R: Sequence[int]) -> tuple[Tensor, Tensor]:
        """C[K,K], of which what is below the diagonal means nothing, and C[K,R], in float32. Both lists ascend."""
        inner_KK, cross_KR = torch.empty(0), torch.empty(0)
        start = 0
        for panel in self._panels():
            kept, gone = (torch.tensor(indices, dtype=torch.long, device=panel.device) for indices in (kept_K, gone_R))
            if not start:
                inner_KK = panel.new_empty(len(kept), len(kept))
                cross_KR = panel.new_empty(len(kept), len(gone))
            stop = start + len(panel)
            first, last = bisect_left(kept_K, start), bisect_left(kept_K, stop)
            gone_first, gone_last = bisect_left(gone_R, start), bisect_left(gone_R, stop)
            rows = panel[kept[first:last] - start]
            inner_KK[first:last, first:] = rows[:, kept[first:] - start]
            cross_KR[first:last, gone_first:] = rows[:, gone[gone_first:] - start]
            cross_KR[last:, gone_first:gone_last] = panel[gone[gone_first:gone_last] - start][:, kept[last:] - start].T
            start = stop
        return inner_KK, cross_KR

    def inside(self, columns_CD: Tensor) -> tuple[Tensor, Tensor]:
        """The trace of columns^T C columns, and that of C, as scalars in float64; products in float32."""
        inside = trace = torch.zeros((), dtype=torch.float64, device=columns_CD.device)
        start = 0
        for panel in self._panels():
            stop = start + len(panel)
            mine_PD, square_PP = columns_CD[start:stop], panel[:, : len(panel)]
            # What is right of the diagonal block counts twice, for below it lies the same.
            reached_PD = torch.addmm(square_PP @ mine_PD, panel[:, len(panel) :], columns_CD[stop:], alpha=2)
            inside = inside + reached_PD.mul_(mine_PD).sum(dtype=torch.float64)
            trace = trace + square_PP.diagonal().sum(dtype=torch.float64)
            start = stop
        return inside, trace


def panel_bytes(channels: int) -> int:
    """What the panels of one sum take."""
    return sum(4 * min(_PANEL, channels - start) * (channels - start) for start in range(0, channels, _PANEL))
