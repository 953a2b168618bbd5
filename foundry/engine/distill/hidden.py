"""Losses on hidden states, for a student that lost many layers: where its teacher's stream is behind some of them.

T: counted tokens, B: rows, S: tokens of a row, H: hidden of the student, G: hidden of the teacher.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.distill.parallel import ALONE, Ranks, whole
from foundry.spec.family import family_of
from foundry.spec.stages import HiddenLoss

Distance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From states of student and teacher [T, G] to their distance summed over the tokens, and its gradient [T, G]."""


def cosine(student_TG: Tensor, teacher_TG: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cos; the gradient is (cos x / |x| - y / |y|) / |x|."""
    tiny = torch.finfo(student_TG.dtype).tiny
    length_T1 = student_TG.norm(dim=1, keepdim=True).clamp_min(tiny)
    mine_TG = student_TG / length_T1
    theirs_TG = teacher_TG / teacher_TG.norm(dim=1, keepdim=True).clamp_min(tiny)
    cos_T1 = (mine_TG * theirs_TG).sum(dim=1, keepdim=True)
    return (1 - cos_T1).double().sum(), (cos_T1 * mine_TG - theirs_TG) / length_T1


def mse(student_TG: Tensor, teacher_TG: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over G of the squared difference."""
    difference_TG = student_TG - teacher_TG
    width = student_TG.shape[1]
    return difference_TG.square().double().sum() / width, difference_TG * (2 / width)


_DISTANCES: dict[str, Distance] = {"cosine": cosine, "mse": mse}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which student layer answers to which teacher layer, by what distance."""

    distance: Distance
    layers: tuple[tuple[int, int], ...]
    teacher_hidden: int

    @classmethod
    def of(cls, config: HiddenLoss, kept: Sequence[int], teacher_layers: int, teacher_hidden: int) -> "Pairs":
        """Evenly spaced layers of a student that kept these of its teacher's, the last among them.

        A student's layer answers to the teacher's last layer before the next one that was kept: to all that went too.
        """
        ends = [*(layer - 1 for layer in kept[1:]), teacher_layers - 1]
        count = min(config.layers, len(kept))
        chosen = sorted({(number + 1) * len(kept) // count - 1 for number in range(count)})
        layers = tuple((layer, ends[layer]) for layer in chosen)
        return cls(distance=_DISTANCES[config.kind], layers=layers, teacher_hidden=teacher_hidden)


class HiddenMatch(nn.Module):
    """The hidden loss of one student: the projection where widths differ, and the weight that balances it.

    The weight is the ratio of the logit loss to this loss in the step before, so that both count alike (as the loss
    balancer of NVIDIA's ModelOpt has it) and a step does not depend on how it is cut into micro-batches. The first step
    only measures.
    """

    weight: Tensor

    def __init__(self, pairs: Pairs, student_hidden: int, seed: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        self._logit_loss, self._hidden_loss = 0.0, 0.0
        self.projection: nn.Parameter | None = None
        if student_hidden != pairs.teacher_hidden:
            generator = torch.Generator().manual_seed(seed)
            start_GH = torch.randn(pairs.teacher_hidden, student_hidden, generator=generator) / student_hidden**0.5
            self.projection = nn.Parameter(start_GH)

    def gradients(
        self, mine: Mapping[int, Tensor], theirs: Mapping[int, Tensor], targets_BS: Tensor, scale: float,
        ranks: Ranks = ALONE,
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        """The watched outputs [B, S, H] of the student and d loss / d output; the projection's is added to its own."""
        outputs, gradients = [], []
        scale /= len(self.pairs.layers)
        weight = float(self.weight)
        projection_GH = None if self.projection is None else whole(self.projection.detach())
        for layer, teacher_layer in self.pairs.layers:
            output_BSH = mine[layer]
            state_TH = output_BSH.detach()[targets_BS].float()
            projected_TG = state_TH if projection_GH is None else state_TH @ projection_GH.T
            loss, slope_TG = self.pairs.distance(projected_TG, theirs[teacher_layer].float())
            self._hidden_loss += float(loss) * scale
            slope_TG = slope_TG * (scale * weight)
            if self.projection is not None and projection_GH is not None:
                own_GH = ranks.share_of(slope_TG.T @ state_TH, self.projection)
                self.projection.grad = own_GH if self.projection.grad is None else self.projection.grad.add_(own_GH)
                slope_TG = slope_TG @ projection_GH
            gradient_BSH = torch.zeros_like(output_BSH)
            gradient_BSH[targets_BS] = slope_TG.to(output_BSH.dtype)
            outputs.append(output_BSH)
            gradients.append(gradient_BSH)
        return outputs, gradients

    def add_logit_loss(self, loss: float) -> None:
        """Note what the logit loss of this micro-batch was."""
        self._logit_loss += loss

    def balance(self, ranks: Ranks = ALONE) -> None:
        """A step is over: weigh the next one by it."""
        logit_loss, hidden_loss = ranks.averaged([self._logit_loss, self._hidden_loss])
        if hidden_loss > 0:
            self.weight.fill_(logit_loss / hidden_loss)
        self.forget()

    def forget(self) -> None:
        """Drop the sums of a step that was not taken."""
        self._logit_loss, self._hidden_loss = 0.0, 0.0


@contextmanager
def watching(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within this, the outputs [B, S, hidden] of these layers are in the dictionary after a forward pass."""
    seen: dict[int, Tensor] = {}
    if not layers:
        yield seen
        return
    pattern = family_of(model.config.to_dict()).layer_module

    def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[layer] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = [model.get_submodule(pattern.format(layer=n)).register_forward_hook(keep(n)) for n in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
