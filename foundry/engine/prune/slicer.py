"""Makes a student's tensors out of a teacher's safetensors, one at a time, by the family table.

Letters of shapes: H hidden, D kept hidden, C channels of a projection's input, K kept channels, O rows of a
projection's output, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from foundry.engine.allocator import return_freed_memory
from foundry.engine.products import inner_dtype
from foundry.engine.prune import repair
from foundry.engine.prune.plan import kept_rows
from foundry.engine.prune.statistics import Channels, Statistics, Stream
from foundry.engine.tensors import Entry, Reader
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.variant import PrunePlan
from foundry.spec.weights import NORMS, READERS, WRITERS, Role, Weight
from foundry.spec.weights import Tensor as TensorPlace

_LARGE = 2**21
"""Numbers of a tensor behind which freed memory goes back."""
_ROWS = 1024
"""Of a matrix that are in float32 at a time while it is turned."""


@dataclass(frozen=True, kw_only=True)
class Slicer:
    """A plan applied to a checkpoint. `statistics` feed the repairs; only a plan that cuts nothing does without."""

    checkpoint: Checkpoint
    plan: PrunePlan
    statistics: Statistics | None
    device: torch.device
    dtype_of_products: torch.dtype = torch.float32
    """In which a CPU may turn a weight of this type onto the new axes (with sums in float32); a GPU uses float32."""
    piece_bytes: int = 2**24
    """Of the matrices with a row for every token, how much is worked on at a time."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the student."""
        for place in self.places:
            yield place.name, self.tensor(place)
            if math.prod(place.size) >= _LARGE:
                return_freed_memory()  # a refit has made much more on its way to this

    def config(self) -> dict[str, Any]:
        """The student's config.json.

        What the teacher's config leaves to its class is said where a student needs it: settings of every layer, and all
        of them where another class carries the student.
        """
        family, present = self.checkpoint.family, self.checkpoint.present
        config = dict(self.checkpoint.config)
        carried = family.carried_by(self.plan.shape, present) is not None
        needed = (*family.config_lists, *(family.config_keep if carried else ()))
        if unsaid := [key for key in needed if config.get(key) is None]:
            assumed = AutoConfig.for_model(**deepcopy(config)).to_dict()  # it writes into the rope settings
            config |= {key: assumed[key] for key in unsaid if assumed.get(key) not in (None, [])}
        return family.config_for(config, self.plan.shape, self.plan.layers, present)

    @property
    def places(self) -> list[TensorPlace]:
        """Every tensor of the student as the family table has it."""
        return list(self.checkpoint.family.tensors(self.plan.shape, self.checkpoint.present))

    def entries(self) -> list[Entry]:
        """What the student's files will hold; every tensor keeps the type that it has in the teacher."""
        return [Entry(place.name, self.dtype(place), place.size) for place in self.places]

    def dtype(self, place: TensorPlace) -> torch.dtype:
        return self._read.dtype(self._source(place.weight, place))

    def tensor(self, place: TensorPlace) -> Tensor:
        """One tensor in the teacher's dtype; a plan that cuts nothing leaves it as it is."""
        source = self._source(place.weight, place)
        if "vocab" not in place.weight.dims or not self._cuts_hidden:
            return self._cut(place, self._read(source)).to(self._read.dtype(source)).contiguous()
        # Matrices with a row for every token are the largest, and each row is cut by itself.
        made = torch.empty(place.size, dtype=self.dtype(place), device=self.device)
        for rows, piece in self._read.pieces(source):
            made[rows] = self._cut(place, piece).to(made.dtype)
        return made

    @cached_property
    def axes_HD(self) -> Tensor:
        """The map from the teacher's residual stream to the student's: principal axes, or columns of the identity."""
        if not self.plan.rotated:
            return torch.eye(self.plan.teacher_shape.hidden, device=self.device)[:, list(self.plan.hidden)]
        axes = repair.mean_free_axes if self.checkpoint.family.norm == "layer" else repair.principal_axes
        return axes(self._found.axes_HH.to(self.device), self.plan.shape.hidden)

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
            # What it writes to comes first: a refit of fewer rows is less work, and gives the same.
            return self._output_projection(place, self._on_stream(place, value))
        for axis, dimension in enumerate(weight.dims):
            if dimension not in ("hidden", "vocab"):
                value = self._keep(place, value, axis)
        return self._on_stream(place, value)

    def _on_stream(self, place: TensorPlace, value: Tensor) -> Tensor:
        """Its hidden dimension as the student's stream has it."""
        if not self._cuts_hidden:
            return value
        if place.weight.role in NORMS:
            return self._norm_bias(place, value) if place.weight.is_bias else self._norm(place, value)
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
        weight_DC = value.T if weight.input_axis == 0 else value
        refitted_DK = repair.refit(weight_DC, self._channels(place).gram, kept)
        return refitted_DK.T if weight.input_axis == 0 else refitted_DK

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
        if role in ("embedding", "positions"):
            if role == "embedding" and self.plan.shape.tied:
                return self._tied.shared(*self._ends(value))
            return self._turned(value) * (self._embedding_gain if role == "embedding" else 1.0)
        if role in WRITERS:
            hidden = 0 if weight.is_bias else weight.dims.index("hidden")
            norm_weight = self._norm_weight(_BEHIND[role], place)
            return self._turned(value.movedim(hidden, -1), norm_weight).movedim(-1, hidden)
        norm = self.checkpoint.family.reads(role)
        if weight.is_bias:
            return value.float() + self._constant_of_norm(norm, place)
        if "hidden" not in weight.dims:
            return value
        hidden = weight.dims.index("hidden")
        return self._turned(value.movedim(hidden, -1), self._norm_weight(norm, place)).movedim(-1, hidden)

    def _turned(self, value: Tensor, norm_weight: Tensor | None = None) -> Tensor:
        """Rows [..., H] that a norm scales, on the student's axes [..., D], in float32; some at a time."""
        axes_HD = self.axes_HD if norm_weight is None else norm_weight[..., None] * self.axes_HD
        rows_NH = value.reshape(-1, value.shape[-1])
        dtype = self.dtype_of_products if value.dtype == self.dtype_of_products else torch.float32
        turned_ND = torch.empty(len(rows_NH), axes_HD.shape[1], device=self.device)
        with inner_dtype(dtype, self.device):
            for some_NH, into_ND in zip(torch.split(rows_NH, _ROWS), torch.split(turned_ND, _ROWS), strict=True):
                torch.mm(some_NH.float(), axes_HD, out=into_ND)
        return turned_ND.view(*value.shape[:-1], -1)

    def _norm(self, place: TensorPlace, value: Tensor) -> Tensor:
        family, role = self.checkpoint.family, place.weight.role
        tied_final = role == "final_norm" and self.plan.shape.tied
        if not self.plan.rotated:
            unit_D = self._keep(place, value.float() + family.norm_offset, 0)
            unit_D = unit_D / self._embedding_gain if tied_final else unit_D
        elif tied_final:
            unit_D = self._tied.scale_D
        else:
            unit_D = torch.ones(self.plan.shape.hidden, device=self.device)
        return unit_D * self._gain(place) - family.norm_offset

    def _gain(self, place: TensorPlace) -> float:
        role = place.weight.role
        if role in _BEHIND.values() and self.plan.rotated:
            stream = self._stream(role, place)
            weight_H = self._norm_weight(role, place)
            return repair.post_norm_gain(stream.covariance, weight_H, self.axes_HD)
        if "rescale" not in self.plan.repair:
            return 1.0
        energy = repair.kept_energy(self._stream(role, place).covariance, self.axes_HD)
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
            student_OD = self._tied.shared(*self._ends(matrix_OH))
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
        return Reader(self.checkpoint, self.device, self.piece_bytes)

    @cached_property
    def _tied(self) -> repair.TiedEnds:
        pieces = self._read.pieces(self.checkpoint.family.embedding)
        return repair.TiedEnds(self._ends(piece) for _, piece in pieces)

    def _ends(self, embedding_VH: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a tied matrix turned, once as the embedding and once as the head, whose norm moves into it."""
        return self._turned(embedding_VH) * self._embedding_gain, self._turned(embedding_VH, self._final_norm_H)

    @cached_property
    def _final_norm_H(self) -> Tensor:
        family = self.checkpoint.family
        return self._read(family.row("final_norm").name).float() + family.norm_offset


_BEHIND: Mapping[Role, Role] = {"o": "attention_post_norm", "down": "ffn_post_norm"}
"""The norm that may stand behind a writer."""
