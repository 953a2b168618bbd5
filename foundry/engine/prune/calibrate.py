"""One forward pass over the calibration text that gathers what every axis and every target needs.

Letters of shapes: B sequences, S positions, H hidden, F ffn, A heads x head_dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import Packed
from foundry.engine.models import trunk_and_head
from foundry.errors import DamagedCheckpoint
from foundry.spec.family import Family, Shape
from foundry.spec.lifecycle import Progress


class Channels:
    """What the input of one output projection says about its channels.

    `score_C` is the Minitron statistic sqrt(sum_b (mean_s |x|)^2): mean over the sequence, L2 over the batch (arXiv
    2407.14679, section 2.2). `gram_CC` is sum x x^T over all positions, for the least-squares refit.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self._squares_C = torch.zeros(channels, dtype=torch.float64, device=device)
        self.gram_CC = torch.zeros(channels, channels, dtype=torch.float32, device=device)

    def add(self, x_BSC: Tensor) -> None:
        x = x_BSC.float()
        self._squares_C += x.abs().mean(dim=1).double().square().sum(dim=0)
        flat = x.flatten(0, 1)
        self.gram_CC.addmm_(flat.T, flat)

    @property
    def score_C(self) -> Tensor:
        return self._squares_C.sqrt()


class Stream:
    """What one norm sees and says: the covariance of its input, and the Minitron statistic of its output."""

    def __init__(self, hidden: int, device: torch.device) -> None:
        self._squares_H = torch.zeros(hidden, dtype=torch.float64, device=device)
        self.covariance_HH = torch.zeros(hidden, hidden, dtype=torch.float32, device=device)

    def add(self, x_BSH: Tensor, out_BSH: Tensor) -> None:
        self._squares_H += out_BSH.float().abs().mean(dim=1).double().square().sum(dim=0)
        flat = x_BSH.float().flatten(0, 1)
        self.covariance_HH.addmm_(flat.T, flat)

    @property
    def score_H(self) -> Tensor:
        return self._squares_H.sqrt()


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """All that calibration found. Lists run over the teacher's layers."""

    ffn: list[Channels]
    attention: list[Channels]
    attention_norm: list[Stream]
    ffn_norm: list[Stream]
    final_norm: Stream
    distance_L: Tensor
    """1 - mean cos(input, output) of each layer: its influence on the stream (ShortGPT, arXiv 2403.03853)."""
    tokens: int

    @property
    def hidden_score_H(self) -> Tensor:
        """The norms' scores summed over layers; the final norm feeds no projection and does not count (Minitron)."""
        return torch.stack([s.score_H for s in (*self.attention_norm, *self.ffn_norm)]).sum(dim=0)


def bytes_needed(shape: Shape) -> int:
    """Memory that the statistics take: one square matrix a projection and a norm."""
    attention = shape.heads * shape.head_dim
    per_layer = shape.ffn**2 + attention**2 + 2 * shape.hidden**2
    return 4 * (shape.layers * per_layer + shape.hidden**2)


def calibrate(
    teacher: PreTrainedModel, family: Family, shape: Shape, packed: Packed, context: RunContext, *, rows: int = 8
) -> Statistics:
    """Run the teacher over the text and listen at every projection and norm.

    Raises `DamagedCheckpoint` when an activation is not a number, `Stopped` when asked to.
    """
    gathered = _Gathering(family, shape, context.device)
    trunk = trunk_and_head(teacher).trunk
    steps = -(-len(packed) // rows)
    with gathered.listening(teacher), torch.no_grad():
        for step, batch in enumerate(packed.batches(rows, context.device), start=1):
            if context.should_stop():
                raise Stopped
            trunk(**batch.model_inputs())
            context.progress(Progress(stage="prune", step=step, steps=steps))
    return gathered.statistics(packed.ids_NS.numel())


class _Gathering:
    """The accumulators and the hooks that fill them."""

    def __init__(self, family: Family, shape: Shape, device: torch.device) -> None:
        self.family, self.shape = family, shape
        self.ffn = [Channels(shape.ffn, device) for _ in range(shape.layers)]
        self.attention = [Channels(shape.heads * shape.head_dim, device) for _ in range(shape.layers)]
        self.attention_norm = [Stream(shape.hidden, device) for _ in range(shape.layers)]
        self.ffn_norm = [Stream(shape.hidden, device) for _ in range(shape.layers)]
        self.final_norm = Stream(shape.hidden, device)
        self.cosines_L = torch.zeros(shape.layers, dtype=torch.float64, device=device)
        self.positions = 0

    @contextmanager
    def listening(self, teacher: nn.Module) -> Iterator[None]:
        handles = []

        def module(weight: str, layer: int) -> nn.Module:
            return teacher.get_submodule(weight.format(layer=layer).removesuffix(".weight"))

        down, out = self.family.row("down").name, self.family.row("o").name
        for layer in range(self.shape.layers):
            for name, channels in ((down, self.ffn[layer]), (out, self.attention[layer])):
                handles.append(module(name, layer).register_forward_pre_hook(partial(_hear_input, channels)))
            norms = (
                (self.family.attention_norm, self.attention_norm[layer]),
                (self.family.ffn_norm, self.ffn_norm[layer]),
            )
            for name, stream in norms:
                handles.append(module(name, layer).register_forward_hook(partial(_hear_norm, stream)))
            block = teacher.get_submodule(self.family.layer_module.format(layer=layer))
            handles.append(block.register_forward_hook(partial(self._hear_layer, layer)))
        handles.append(module(self.family.final_norm, 0).register_forward_hook(partial(_hear_norm, self.final_norm)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hear_layer(
        self, layer: int, _: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> None:
        after = output if isinstance(output, Tensor) else output[0]
        cosines = torch.cosine_similarity(args[0].float(), after.float(), dim=-1)
        self.cosines_L[layer] += cosines.double().sum()
        if layer == 0:
            self.positions += cosines.numel()

    def statistics(self, tokens: int) -> Statistics:
        found = Statistics(
            ffn=self.ffn,
            attention=self.attention,
            attention_norm=self.attention_norm,
            ffn_norm=self.ffn_norm,
            final_norm=self.final_norm,
            distance_L=1 - self.cosines_L / self.positions,
            tokens=tokens,
        )
        for layer in range(self.shape.layers):
            if (
                not torch.isfinite(found.ffn[layer].score_C).all()
                or not torch.isfinite(found.attention[layer].score_C).all()
            ):
                raise DamagedCheckpoint(
                    f"the teacher's activations in layer {layer} are not numbers; its weights are damaged",
                    pointer="/teacher",
                )
        return found


def _hear_input(channels: Channels, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    channels.add(args[0])


def _hear_norm(stream: Stream, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    stream.add(args[0], output)
