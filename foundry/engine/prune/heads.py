"""The KL at two heads that need not be in memory.

With a large vocabulary the heads are the largest matrices of all. A CPU reads them a few rows at a time, for some
tokens' logits and again for their gradient; on a GPU they are there.

T: counted tokens, C: tokens of a chunk, V: vocabulary, H: hidden of the teacher, D: of the student.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from foundry.engine.distill.divergences import forward_kl
from foundry.engine.products import capped, chunk_tokens, operand, product, slope_of_cap, softmax

_CHUNK_BYTES, _FEWEST_TOKENS = 2**23, 64
"""Of a chunk's logits on a CPU: few enough to hold four times, enough that the heads are not read for few tokens."""


class HeadRows(NamedTuple):
    """A head [V, H] as pieces of rows with their places, and the cap on its logits where the family has one."""

    vocabulary: int
    pieces: Callable[[], Iterator[tuple[slice, Tensor]]]
    softcap: float | None

    @classmethod
    def of(cls, head_VH: Tensor, softcap: float | None) -> "HeadRows":
        """Of a head that is in memory."""
        return cls(len(head_VH), lambda: iter([(slice(0, len(head_VH)), head_VH)]), softcap)

    def logits(self, hidden_CH: Tensor, dtype: torch.dtype) -> Tensor:
        """[C, V] in float32; products in `dtype`."""
        logits_CV = torch.empty(len(hidden_CH), self.vocabulary, device=hidden_CH.device)
        for rows, piece in self.pieces():
            logits_CV[:, rows] = product(operand(hidden_CH, dtype), operand(piece, dtype).T)
        return capped(logits_CV, self.softcap)

    def back(self, gradient_CV: Tensor, dtype: torch.dtype) -> Tensor:
        """gradient @ head [C, H] in float32."""
        found_CH = torch.empty(0)
        for rows, piece in self.pieces():
            part_CH = product(operand(gradient_CV[:, rows], dtype), operand(piece, dtype))
            found_CH = found_CH.add_(part_CH) if rows.start else part_CH
        return found_CH


def divergence(
    student_TD: Tensor, student: HeadRows, teacher_TH: Tensor, teacher: HeadRows, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """KL(teacher || student) summed over tokens, in float64, and its gradient for the student [T, D] in float32.

    No gradient where gradients are not asked for. `dtype` is that of products (see `inner_dtype`).
    """
    total = torch.zeros((), dtype=torch.float64, device=student_TD.device)
    wanted = torch.is_grad_enabled()
    gradients = []
    step = _tokens(teacher, teacher_TH)
    with torch.no_grad():
        for some_CD, theirs_CH in zip(torch.split(student_TD, step), torch.split(teacher_TH, step), strict=True):
            said = softmax(student.logits(some_CD, dtype))
            slope_CV = slope_of_cap(said.logits_TV, 1.0, student.softcap)
            loss_C, gradient_CV = forward_kl(softmax(teacher.logits(theirs_CH, dtype)), said)
            total += loss_C.double().sum()
            if wanted:
                gradients.append(student.back(gradient_CV if slope_CV is None else gradient_CV.mul_(slope_CV), dtype))
    return total, torch.cat(gradients) if wanted else None


def _tokens(head: HeadRows, hidden: Tensor) -> int:
    """Of a chunk."""
    if hidden.device.type == "cpu":
        return max(_FEWEST_TOKENS, _CHUNK_BYTES // (4 * head.vocabulary))
    return chunk_tokens(head.vocabulary, hidden.device)
