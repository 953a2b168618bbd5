"""Makes a student's tensors out of a teacher's safetensors, one at a time, by the family table.

Letters of shapes: H hidden, D kept hidden, C channels of a projection's input, K kept channels, O rows of a
projection's output, V vocabulary.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from foundry.engine.context import RunContext, Stopped
from foundry.engine.prune import repair
from foundry.engine.prune.calibrate import Channels, Statistics, Stream
from foundry.engine.prune.plan import kept_rows
from foundry.engine.tensors import write_tensors
from foundry.errors import DamagedCheckpoint
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.family import NORMS, READERS, WRITERS, Role, Weight
from foundry.spec.family import Tensor as TensorPlace
from foundry.spec.variant import PrunePlan

_SHARD_BYTES = 4 * 2**30


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


def check_finite(checkpoint: Checkpoint, context: RunContext) -> None:
    """Read every weight once, before any long work; raise `DamagedCheckpoint` for one that is not a number."""
    read = Reader(checkpoint, context.device)
    for name in checkpoint.tensors:
        if context.should_stop():
            raise Stopped
        if not torch.isfinite(read(name)).all():
            raise DamagedCheckpoint(
                f"tensor {name!r} holds numbers that are infinite or not numbers; copy or train the checkpoint again",
                pointer="/teacher",
            )


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
            original = self._read(self._source(place.weight, place))
            yield place.name, self._cut(place, original).to(original.dtype).contiguous()

    @cached_property
    def axes_HD(self) -> Tensor:
        """The map from the teacher's residual stream to the student's: principal axes, or columns of the identity."""
        if not self.plan.rotated:
            return torch.eye(self.plan.teacher_shape.hidden, device=self.device)[:, list(self.plan.hidden)]
        axes = repair.mean_free_axes if self.checkpoint.family.norm == "layer" else repair.principal_axes
        return axes(self._found.covariances(), self.plan.shape.hidden)

    @property
    def _found(self) -> Statistics:
        if self.statistics is None:
            raise ValueError("a plan that cuts needs the statistics of its calibration")
        return self.statistics

    @property
    def _cuts_hidden(self) -> bool:
        return self.plan.shape.hidden < self.plan.teacher_shape.hidden

    def _teacher_layer(self, place: TensorPlace) -> int:
        return self.plan.layers[place.layer] if place.weight.per_layer else 0

    def _teacher_expert(self, place: TensorPlace) -> int:
        return self.plan.experts[place.layer][place.expert] if self.plan.experts else place.expert

    def _source(self, weight: Weight, place: TensorPlace) -> str:
        """The teacher's tensor of a table row at the place of a student's tensor."""
        return weight.name.format(layer=self._teacher_layer(place), expert=self._teacher_expert(place))

    def _cut(self, place: TensorPlace, value: Tensor) -> Tensor:
        weight = place.weight
        if weight.role in WRITERS and not weight.is_bias:
            value = self._output_projection(place, value)
        else:
            for axis, dimension in enumerate(weight.dims):
                if dimension != "hidden":
                    value = self._keep(place, value, axis)
        if not self._cuts_hidden:
            return value
        if weight.role in NORMS:
            return self._norm_bias(place, value) if weight.is_bias else self._norm(place, value)
        return self._rotated(place, value) if self.plan.rotated else self._indexed(place, value)

    def _keep(self, place: TensorPlace, value: Tensor, axis: int) -> Tensor:
        """The kept rows of one dimension of a tensor; all of them where a plan keeps all."""
        kept = kept_rows(self.plan, place.weight.dims[axis], place.layer, place.expert)
        if len(kept) == value.shape[axis]:
            return value
        return value.index_select(axis, torch.tensor(kept, device=self.device))

    def _output_projection(self, place: TensorPlace, value: Tensor) -> Tensor:
        """Columns go with the channels; the rest learns to do their work."""
        weight = place.weight
        assert weight.input_axis is not None
        kept = kept_rows(self.plan, weight.dims[weight.input_axis], place.layer, place.expert)
        if "refit" not in self.plan.repair or len(kept) == value.shape[weight.input_axis]:
            return self._keep(place, value, weight.input_axis)
        weight_HC = value.T if weight.input_axis == 0 else value
        refitted_HK = repair.refit(weight_HC, self._channels(place).gram_CC, torch.tensor(kept, device=self.device))
        return refitted_HK.T if weight.input_axis == 0 else refitted_HK

    def _channels(self, place: TensorPlace) -> Channels:
        layer = self._found.layers[self._teacher_layer(place)]
        return layer.attention if place.weight.role == "o" else layer.ffn[self._teacher_expert(place)]

    def _indexed(self, place: TensorPlace, value: Tensor) -> Tensor:
        if "hidden" in place.weight.dims:
            value = self._keep(place, value, place.weight.dims.index("hidden"))
        return value.float() * self._embedding_gain if place.weight.role == "embedding" else value

    def _rotated(self, place: TensorPlace, value: Tensor) -> Tensor:
        """The stream turned onto its principal axes. Norm weights move into the matrices beside them.

        A norm in front scales what its readers take in. A norm behind a writer scales what that has put out; there the
        turn is not exact, for the length that the norm divides by is taken before its weight in the teacher and after
        it in the student: `_norm` makes up for that on average.
        """
        weight, role = place.weight, place.weight.role
        value = value.float()
        if role in ("embedding", "positions"):
            if role == "embedding" and self.plan.shape.tied:
                return self._tied_ends[0]
            return value @ self.axes_HD * (self._embedding_gain if role == "embedding" else 1.0)
        if role in WRITERS:
            hidden = 0 if weight.is_bias else weight.dims.index("hidden")
            scaled = value.movedim(hidden, -1) * self._norm_weight(_BEHIND[role], place)
            return (scaled @ self.axes_HD).movedim(-1, hidden)
        norm = self.checkpoint.family.reads(role)
        if weight.is_bias:
            return value + self._constant_of_norm(norm, place)
        if "hidden" not in weight.dims:
            return value
        hidden = weight.dims.index("hidden")
        return ((value.movedim(hidden, -1) * self._norm_weight(norm, place)) @ self.axes_HD).movedim(-1, hidden)

    def _norm(self, place: TensorPlace, value: Tensor) -> Tensor:
        family, role = self.checkpoint.family, place.weight.role
        tied_final = role == "final_norm" and self.plan.shape.tied
        if not self.plan.rotated:
            unit_D = self._keep(place, value.float() + family.norm_offset, 0)
            unit_D = unit_D / self._embedding_gain if tied_final else unit_D
        elif tied_final:
            unit_D = self._tied_ends[1]
        else:
            unit_D = torch.ones(self.plan.shape.hidden, device=self.device)
        return unit_D * self._gain(place) - family.norm_offset

    def _gain(self, place: TensorPlace) -> float:
        role = place.weight.role
        if role in _BEHIND.values() and self.plan.rotated:
            stream = self._stream(role, place)
            weight_H = self._norm_weight(role, place)
            return repair.post_norm_gain(stream.covariance_HH, weight_H, self.axes_HD)
        if "rescale" not in self.plan.repair:
            return 1.0
        energy = repair.kept_energy(self._stream(role, place).covariance_HH, self.axes_HD)
        return repair.norm_gain(energy, self.plan.teacher_shape.hidden, self.plan.shape.hidden)

    def _norm_bias(self, place: TensorPlace, value: Tensor) -> Tensor:
        """A norm's bias is a constant at its readers, who take it over where they have biases of their own.

        Where they have none, the student's norm keeps the bias that gives its readers the nearest constant.
        """
        if not self.plan.rotated:
            return self._keep(place, value, 0)
        family = self.checkpoint.family
        readers = [w for w in family.weights if w.role in READERS and family.reads(w.role) == place.weight.role]
        readers = [weight for weight in readers if not weight.is_bias]
        if place.weight.role == "final_norm" and self.plan.shape.tied:
            readers = [family.row("embedding")]
        bare = [weight for weight in readers if not self._has_bias(weight)]
        if not bare:
            return torch.zeros(self.plan.shape.hidden, device=self.device)
        matrix_OH = torch.cat([self._as_reader(weight, place) for weight in bare])
        scaled_OH = matrix_OH * self._norm_weight(place.weight.role, place)
        student_OD = scaled_OH @ self.axes_HD
        if place.weight.role == "final_norm" and self.plan.shape.tied:
            student_OD = self._tied_ends[0]
        return repair.nearest_input(student_OD, matrix_OH @ value.float())

    def _has_bias(self, weight: Weight) -> bool:
        name = weight.bias_row().name
        return any(w.name == name and (not w.optional or name in self.checkpoint.present)
                   for w in self.checkpoint.family.weights)  # fmt: skip

    def _as_reader(self, weight: Weight, place: TensorPlace) -> Tensor:
        """A reader's matrix [O, H] as the teacher has it."""
        value = self._read(self._source(weight, place)).float()
        return value.T if weight.input_axis == 0 else value

    def _constant_of_norm(self, norm: Role | None, place: TensorPlace) -> Tensor:
        """What a layer norm's bias adds to each kept row of a reader: W b."""
        if norm is None or self.checkpoint.family.norm != "layer":
            return torch.zeros((), device=self.device)
        matrix = next(w for w in self.checkpoint.family.weights if w.bias_row().name == place.weight.name)
        bias_H = self._read(self._source(self.checkpoint.family.row(norm).bias_row(), place)).float()
        constant_O = self._as_reader(matrix, place) @ bias_H
        return self._keep(place, constant_O, 0)

    def _norm_weight(self, norm: Role | None, place: TensorPlace) -> Tensor:
        """What a norm multiplies by; one where the family has no such norm."""
        weight = self.checkpoint.family.find(norm) if norm else None
        if weight is None:
            return torch.ones((), device=self.device)
        return self._read(self._source(weight, place)).float() + self.checkpoint.family.norm_offset

    def _stream(self, role: Role, place: TensorPlace) -> Stream:
        return self._found.final_norm if role == "final_norm" else (
            self._found.layers[self._teacher_layer(place)].streams[role]
        )  # fmt: skip

    @property
    def _embedding_gain(self) -> float:
        """Makes up for a model that multiplies embeddings by the square root of its own hidden."""
        if not self.checkpoint.family.embedding_times_sqrt_hidden:
            return 1.0
        return math.sqrt(self.plan.teacher_shape.hidden / self.plan.shape.hidden)

    @cached_property
    def _read(self) -> Reader:
        return Reader(self.checkpoint, self.device)

    @cached_property
    def _tied_ends(self) -> tuple[Tensor, Tensor]:
        family = self.checkpoint.family
        embedding_VH = self._read(family.embedding).float()
        norm_H = self._read(family.row("final_norm").name).float() + family.norm_offset
        return repair.retie(embedding_VH @ self.axes_HD * self._embedding_gain, (embedding_VH * norm_H) @ self.axes_HD)


_BEHIND: Mapping[Role, Role] = {"o": "attention_post_norm", "down": "ffn_post_norm"}
"""The norm that may stand behind a writer."""


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
