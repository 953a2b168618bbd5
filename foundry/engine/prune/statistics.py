"""What calibration found, a file for each layer: scores are held in memory, matrices read when a repair needs them.

H hidden, C channels of a projection's input, E experts, L layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from foundry.engine.prune import repair
from foundry.engine.prune.symmetric import Symmetric, panel_bytes
from foundry.engine.tensors import read_tensor
from foundry.intake.safetensors import TensorEntry, read_header
from foundry.spec.family import Family
from foundry.spec.weights import Role, Shape

_ROWS = 256
"""Of a matrix that are in float64 at a time."""
POST_NORMS: tuple[Role, ...] = ("attention_post_norm", "ffn_post_norm")


class Stored:
    """Tensors of one file, read one by one."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Matrices come to `device`; scores, from which indices are chosen, to the CPU."""
        self._path, self._device = path, device

    def __call__(self, name: str) -> Tensor:
        return read_tensor(self._entries[name], torch.device("cpu"))

    def matrix(self, name: str) -> Symmetric:
        """A symmetric matrix, whose panels are read when they are needed."""
        count = sum(one.startswith(f"{name}.") for one in self._entries)
        entries = [self._entries[f"{name}.{number}"] for number in range(count)]
        return Symmetric(lambda: (read_tensor(entry, self._device) for entry in entries))

    def names(self) -> list[str]:
        return list(self._entries)

    @cached_property
    def _entries(self) -> dict[str, TensorEntry]:
        return read_header(self._path)


class Channels:
    """What the input of one output projection says about its channels."""

    def __init__(self, stored: Stored, name: str) -> None:
        self._stored, self._name = stored, name
        self.score_C = stored(f"{name}.score")
        """The Minitron statistic sqrt(sum_b (mean_s |x|)^2): mean over the sequence, L2 over the batch (arXiv
        2407.14679, section 2.2)."""
        self.contribution_C = stored(f"{name}.contribution")
        """sqrt(sum x^2) |w|, w being the channel's column of the projection: how much it puts into the output."""

    @property
    def gram(self) -> Symmetric:
        """[C, C]: sum x x^T over all positions, for the least-squares refit."""
        return self._stored.matrix(f"{self._name}.gram")


class Stream:
    """One place of the residual stream."""

    def __init__(self, stored: Stored, name: str) -> None:
        self._stored, self._name = stored, name
        self.score_H = stored(f"{name}.score")
        """The Minitron statistic of what the readers see there."""

    @property
    def covariance(self) -> Symmetric:
        """[H, H]: sum x x^T of the stream; where a norm reads it, every position scaled to a like length.

        Without its mean over dimensions where layer norms read it.
        """
        return self._stored.matrix(f"{self._name}.covariance")


class LayerStatistics:
    """What was found in one layer."""

    def __init__(self, path: Path, experts: int, device: torch.device) -> None:
        stored = Stored(path, device)
        self.attention = Channels(stored, "attention")
        self.ffn = [Channels(stored, f"ffn.{expert}") for expert in range(max(1, experts))]
        """One of each expert; one alone in a dense model."""
        places = {name.split(".")[1] for name in stored.names() if name.startswith("streams.")}
        self.streams: dict[str, Stream] = {role: Stream(stored, f"streams.{role}") for role in sorted(places)}
        """By the norm that stands there; `attention_norm` and `ffn_norm` also where the readers have no norm."""
        self.expert_score_E = stored("expert_score")
        """Sum over tokens of the length of each expert's weighted output (Minitron for mixtures of experts)."""
        self.cosine_sum = stored("cosine_sum")
        """Of the cosines between the layer's input and output."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """All that calibration found. Lists run over the teacher's layers."""

    layers: list[LayerStatistics]
    final_norm: Stream
    tokens: int
    centred: bool
    """Whether layer norms read the stream, which subtract its mean over dimensions."""

    @property
    def distance_L(self) -> Tensor:
        """1 - mean cos(input, output) of each layer: its influence on the stream (ShortGPT, arXiv 2403.03853)."""
        return 1 - torch.stack([layer.cosine_sum for layer in self.layers]) / self.tokens

    @property
    def hidden_score_H(self) -> Tensor:
        """The readers' scores summed over layers; the final norm feeds no projection and does not count (Minitron)."""
        return torch.stack([stream.score_H for stream in self._read_streams()]).sum(dim=0)

    @cached_property
    def axes_HH(self) -> Tensor:
        """Orthonormal columns, those first that carry most of the stream where something reads it, in float64."""
        places = [*self._read_streams(), self.final_norm]
        return repair.ordered_axes((stream.covariance.whole() for stream in places), centred=self.centred)

    def _read_streams(self) -> Iterator[Stream]:
        for layer in self.layers:
            yield from (layer.streams["attention_norm"], layer.streams["ffn_norm"])


def column_squares(writer_HC: Tensor) -> Tensor:
    """The sum of squares of each column [C], in float64, a few rows at a time."""
    return torch.stack([some_PC.double().square().sum(dim=0) for some_PC in torch.split(writer_HC, _ROWS)]).sum(dim=0)


def places_of(family: Family) -> list[Role]:
    """Where a layer's stream is listened to."""
    return ["attention_norm", "ffn_norm", *(role for role in POST_NORMS if family.find(role))]


def bytes_of_layer(family: Family, shape: Shape) -> int:
    """What one layer's statistics take: half a square matrix for each projection and place of the stream."""
    channels = max(1, shape.experts) * panel_bytes(shape.ffn) + panel_bytes(shape.heads * shape.head_dim)
    return channels + len(places_of(family)) * panel_bytes(shape.hidden)
