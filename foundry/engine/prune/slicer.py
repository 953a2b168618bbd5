"""Makes a student's tensors out of a teacher's safetensors, one at a time, by the family table.

Letters of shapes: H hidden, D kept hidden, C channels of a projection's input, V vocabulary.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from foundry.engine.prune import repair
from foundry.engine.prune.calibrate import Statistics, Stream
from foundry.engine.tensors import write_tensors
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.family import Tensor as TensorPlace
from foundry.spec.family import Weight
from foundry.spec.variant import PrunePlan

_SHARD_BYTES = 4 * 2**30
_READERS = {"q": "attention", "k": "attention", "v": "attention", "gate": "ffn", "up": "ffn", "head": "final"}
"""Which norm's output a matrix reads."""


class Reader:
    """The teacher's tensors, read from disk as they are asked for."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._open = {
            file: safe_open(file, framework="pt") for file in {entry.file for entry in checkpoint.tensors.values()}
        }

    def __call__(self, name: str) -> Tensor:
        value: Tensor = self._open[self._checkpoint.tensors[name].file].get_tensor(name)  # type: ignore[no-untyped-call]
        return value.to(self._device)


@dataclass(frozen=True, kw_only=True)
class Slicer:
    """A plan applied to a checkpoint. `statistics` feed the repairs; only a plan that cuts nothing does without."""

    checkpoint: Checkpoint
    plan: PrunePlan
    statistics: Statistics | None
    device: torch.device

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the student in the teacher's dtype; a plan that cuts nothing leaves them as they are."""
        for place in self.checkpoint.family.tensors(self.plan.shape, self.checkpoint.present):
            source = place.weight.name.format(layer=self._teacher_layer(place))
            original = self._read(source)
            yield place.name, self._cut(place, original).to(original.dtype).contiguous()

    @property
    def _found(self) -> Statistics:
        if self.statistics is None:
            raise ValueError("a plan that cuts needs the statistics of its calibration")
        return self.statistics

    def _teacher_layer(self, place: TensorPlace) -> int:
        return self.plan.layers[place.layer] if place.weight.per_layer else 0

    def _cut(self, place: TensorPlace, value: Tensor) -> Tensor:
        weight = place.weight
        if weight.role in ("o", "down") and value.ndim == 2:
            value = self._output_projection(place, value)
        else:
            for axis, dimension in enumerate(weight.dims):
                if dimension in ("ffn", "heads"):
                    value = self._keep(value, axis, self._kept_channels(dimension, place.layer))
        if self.plan.shape.hidden == self.plan.teacher_shape.hidden or "hidden" not in weight.dims:
            return value
        return self._rotated(place, value) if self.plan.rotated else self._indexed(place, value)

    def _output_projection(self, place: TensorPlace, value_HC: Tensor) -> Tensor:
        """Columns go with the channels; the rest learns to do their work."""
        dimension = place.weight.dims[1]
        kept = self._kept_channels(dimension, place.layer)
        if "refit" not in self.plan.repair or len(kept) == value_HC.shape[1]:
            return self._keep(value_HC, 1, kept)
        layer = self._teacher_layer(place)
        channels = self._found.ffn[layer] if dimension == "ffn" else self._found.attention[layer]
        return repair.refit(value_HC, channels.gram_CC, kept)

    def _kept_channels(self, dimension: str, layer: int) -> Tensor:
        if dimension == "ffn":
            return torch.tensor(self.plan.ffn[layer], device=self.device)
        size = self.plan.teacher_shape.head_dim
        heads = torch.tensor(self.plan.heads[layer], device=self.device)
        return (heads[:, None] * size + torch.arange(size, device=self.device)).flatten()

    @staticmethod
    def _keep(value: Tensor, axis: int, kept: Tensor) -> Tensor:
        return value if len(kept) == value.shape[axis] else value.index_select(axis, kept)

    def _indexed(self, place: TensorPlace, value: Tensor) -> Tensor:
        kept = torch.tensor(self.plan.hidden, device=self.device)
        value = value.index_select(place.weight.dims.index("hidden"), kept)
        return value.float() * self._gain(place) if place.weight.role == "norm" else value

    def _rotated(self, place: TensorPlace, value: Tensor) -> Tensor:
        """The stream turned onto its principal axes. Norm weights move into the matrices that read them."""
        weight, axes_HD = place.weight, self._axes_HD
        value = value.float()
        if weight.role == "norm":
            tied_final = weight.name == self.checkpoint.family.final_norm and self.plan.shape.tied
            unit_D = self._tied_ends[1] if tied_final else torch.ones(axes_HD.shape[1], device=self.device)
            return unit_D * self._gain(place)
        if weight.role == "embedding":
            return self._tied_ends[0] if self.plan.shape.tied else value @ axes_HD
        if weight.role in _READERS and value.ndim == 2:
            return (value * self._norm_weight(place)) @ axes_HD
        return axes_HD.T @ value  # o and down write into the stream, and so do their biases

    @cached_property
    def _read(self) -> Reader:
        return Reader(self.checkpoint, self.device)

    @cached_property
    def _axes_HD(self) -> Tensor:
        found = self._found
        streams = [*found.attention_norm, *found.ffn_norm, found.final_norm]
        return repair.principal_axes([s.covariance_HH for s in streams], self.plan.shape.hidden)

    @cached_property
    def _tied_ends(self) -> tuple[Tensor, Tensor]:
        family = self.checkpoint.family
        embedding_VH = self._read(family.embedding).float()
        head_VH = embedding_VH * self._read(family.final_norm).float()
        return repair.retie(embedding_VH @ self._axes_HD, head_VH @ self._axes_HD)

    def _norm_weight(self, place: TensorPlace) -> Tensor:
        family = self.checkpoint.family
        names = {"attention": family.attention_norm, "ffn": family.ffn_norm, "final": family.final_norm}
        return self._read(names[_READERS[place.weight.role]].format(layer=self._teacher_layer(place))).float()

    def _gain(self, place: TensorPlace) -> float:
        if "rescale" not in self.plan.repair:
            return 1.0
        teacher, kept = self.plan.teacher_shape.hidden, self.plan.shape.hidden
        unrotated_HD = torch.eye(teacher, device=self.device)[:, list(self.plan.hidden)]
        axes_HD = self._axes_HD if self.plan.rotated else unrotated_HD
        energy = repair.kept_energy(self._stream(place.weight, self._teacher_layer(place)).covariance_HH, axes_HD)
        return repair.norm_gain(energy, teacher, kept)

    def _stream(self, weight: Weight, layer: int) -> Stream:
        family, found = self.checkpoint.family, self._found
        if weight.name == family.final_norm:
            return found.final_norm
        return found.attention_norm[layer] if weight.name == family.attention_norm else found.ffn_norm[layer]


def write_sharded(tensors: Iterator[tuple[str, Tensor]], folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
    """Write tensors as they come; one model.safetensors, or shards with an index when one is too small."""
    shards: list[dict[str, Tensor]] = [{}]
    written: list[tuple[Path, list[str]]] = []
    total = filled = 0
    for name, value in tensors:
        size = value.numel() * value.element_size()
        if filled and filled + size > shard_bytes:
            written.append(_flush(shards[-1], folder, len(written)))
            shards, filled = [{}], 0
        shards[-1][name] = value.cpu()
        filled, total = filled + size, total + size
    written.append(_flush(shards[-1], folder, len(written)))
    _name_shards(written, folder, total)


def _flush(shard: Mapping[str, Tensor], folder: Path, number: int) -> tuple[Path, list[str]]:
    path = folder / f"part-{number}.safetensors"
    write_tensors(shard, path)
    return path, list(shard)


def _name_shards(written: list[tuple[Path, list[str]]], folder: Path, total_bytes: int) -> None:
    if len(written) == 1:
        written[0][0].rename(folder / "model.safetensors")
        return
    where = {}
    for number, (path, names) in enumerate(written, start=1):
        final = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        path.rename(folder / final)
        where.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
