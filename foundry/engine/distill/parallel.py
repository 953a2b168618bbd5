"""Several accelerators as one: weights, gradients and moments in shards (FSDP2), the rows of a batch divided.

A sharded model's parameters are DTensors: each process holds some rows of every matrix, a layer is made whole for as
long as it computes. Gradients are averaged over the processes, so losses are scaled by their number. What a loss needs
whole (the output matrix, Muon's momentum) is gathered around it. Everything here also means something for one process
alone, so that the loop is written once.

V: vocabulary, H: hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from transformers import PreTrainedModel

from foundry.engine.models import trunk_and_head
from foundry.spec.family import family_of


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, as one of them sees them."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """None for a process alone."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def of_rows(self, rows: Sequence[int]) -> list[int]:
        """This process's rows of a batch; some have one less than others, or none."""
        return list(rows[self.rank :: self.size])

    def averaged(self, values: Sequence[float]) -> list[float]:
        """The mean of each value over the processes."""
        if self.mesh is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        found: list[float] = (tensor / self.size).tolist()
        return found

    def first_says(self, value: float) -> float:
        """The first process's value: what depends on a clock or a signal must be the same everywhere."""
        if self.mesh is None:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return float(tensor)

    def first_path(self, path: Path | None) -> Path | None:
        """The first process's path; all of them must see one file system."""
        if self.mesh is None:
            return path
        told = [path]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.averaged([0.0])

    def shard(self, model: PreTrainedModel) -> None:
        """Divide a whole model, layer by layer, onto this process's device; it must be on a CPU or there already.

        Its trunk is what runs: the head is never called, only its matrix read, which stays the embedding where tied.
        """
        if self.mesh is None:
            return
        trunk, head = trunk_and_head(model).trunk, model.get_output_embeddings()
        embedding = model.get_input_embeddings()
        is_tied = head.weight is embedding.weight
        family, config = family_of(model.config.to_dict()), model.config.to_dict()
        for layer in range(family.shape_of(config).layers):
            fully_shard(model.get_submodule(family.layer_module.format(layer=layer)), mesh=self.mesh)
        # By default the outermost keeps what it gathered: after a look the next step would read the averaged weights.
        fully_shard(trunk, mesh=self.mesh, reshard_after_forward=True)
        if is_tied:
            head.weight = model.get_input_embeddings().weight
        else:
            fully_shard(head, mesh=self.mesh)

    def sharded(self, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter outside of a model, divided like those inside."""
        if self.mesh is None:
            return parameter
        return nn.Parameter(distribute_tensor(parameter.detach(), self.mesh))

    def share_of(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        """A gradient that every process made whole from its own rows, averaged and divided like its parameter."""
        if self.mesh is None:
            return gradient
        assert isinstance(parameter, DTensor)
        partial = DTensor.from_local(gradient / self.size, self.mesh, [Partial()], run_check=False)
        return partial.redistribute(placements=parameter.placements)


ALONE = Ranks()


def own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which it shares the memory of; all of it where there are no shards."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes; itself where there are no shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which each process has a part, divided like another tensor."""
    if not isinstance(like, DTensor):
        return part
    placed = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return placed.full_tensor()


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have whole, divided like another one."""
    if not isinstance(like, DTensor):
        return tensor
    placed = DTensor.from_local(tensor, like.device_mesh, [Replicate()], run_check=False)
    return placed.redistribute(placements=like.placements).to_local()


def fill(model: PreTrainedModel, trained: PreTrainedModel, ranks: Ranks) -> None:
    """Give the first process's `model`, which is whole and on a CPU, the weights of one in shards, tensor by tensor."""
    weights = model.state_dict() if ranks.is_first else {}
    for name, tensor in trained.state_dict().items():
        found = whole(tensor.detach())
        if ranks.is_first:
            weights[name].copy_(found)
