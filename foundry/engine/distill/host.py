"""AdamW in the machine's memory, for a student whose moments do not fit on its accelerator.

N: numbers of a piece.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.adamw import adamw

from foundry.engine.distill.masters import Masters

_PIECE = 32 << 20
"""Numbers of a parameter that travel at a time: while one piece is updated, its neighbours are on their way."""


class HostAdamW(AdamW):
    """AdamW on masters in the machine's memory, from gradients on an accelerator, by PyTorch's own kernel.

    It gives the model the rounded masters too, piece by piece. Nothing of the model's size is held beside masters and
    moments.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], masters: Masters) -> None:
        super().__init__(groups, betas=betas, fused=True)
        self._masters = masters
        self._names = {id(weight): name for name, weight in masters.weights.items()}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        gradients, pieces = self._masters.gradients, list(self._pieces())
        with _Return() as give_back:
            for piece, gradient_N in zip(pieces, _arriving(pieces, gradients), strict=True):
                weight = self._masters.weights[piece.name]
                state = self.state[weight]
                adamw(
                    [_part(weight, piece)], [gradient_N],
                    [_part(state["exp_avg"], piece)], [_part(state["exp_avg_sq"], piece)], [],
                    [state["step"] + 0.0],  # a copy: every piece of a parameter is at the same step
                    fused=True, amsgrad=False, maximize=False, lr=piece.group["lr"], eps=piece.group["eps"],
                    weight_decay=piece.group["weight_decay"], beta1=piece.group["betas"][0],
                    beta2=piece.group["betas"][1],
                )  # fmt: skip
                give_back(_part(weight, piece), _part(self._masters.computing[piece.name], piece))
        for name in gradients:
            self.state[self._masters.weights[name]]["step"] += 1

    def _pieces(self) -> Iterator["_Piece"]:
        for group in self.param_groups:
            for weight in group["params"]:
                name = self._names[id(weight)]
                if name not in self._masters.gradients:
                    continue
                if not (state := self.state[weight]):
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
                for start, stop in pairwise([*range(0, weight.numel(), _PIECE), weight.numel()]):
                    yield _Piece(name, slice(start, stop), group)


class _Piece(NamedTuple):
    """Some consecutive numbers of a parameter."""

    name: str
    numbers: slice
    group: dict[str, Any]
    """PyTorch's, with rate and decay."""


def _part(tensor: Tensor, piece: _Piece) -> Tensor:
    return tensor.detach().view(-1)[piece.numbers]


class _Lane:
    """Two page-locked buffers between an accelerator and the machine's memory: one is worked on, one travels."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._buffers = [torch.empty(_PIECE, dtype=dtype, pin_memory=True) for _ in range(2)]
        self._travelled = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def buffer(self, number: int, size: int) -> Tensor:
        """One of the two, once what travelled in it last has arrived."""
        self._travelled[number % 2].synchronize()
        return self._buffers[number % 2][:size]

    def send(self, number: int, source_N: Tensor, goal_N: Tensor) -> None:
        """Start the journey of a piece between a buffer and the accelerator."""
        with torch.cuda.stream(self._stream):
            goal_N.copy_(source_N, non_blocking=True)
            self._travelled[number % 2].record()

    def wait(self) -> None:
        """Until everything has arrived."""
        self._stream.synchronize()


def _arriving(pieces: Sequence[_Piece], gradients: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The gradient of each piece, in the machine's memory; good until the next one is asked for."""
    parts = [_part(gradients[piece.name], piece) for piece in pieces]
    if not parts or parts[0].device.type == "cpu":
        yield from parts
        return
    lane = _Lane(parts[0].device, torch.float32)

    def send(number: int) -> None:
        part_N = parts[number]
        lane.send(number, part_N, lane.buffer(number, len(part_N)))

    send(0)
    for number, part_N in enumerate(parts):
        if number + 1 < len(parts):
            send(number + 1)
        yield lane.buffer(number, len(part_N))


class _Return:
    """Gives the model its rounded masters; on leaving, all are there."""

    def __init__(self) -> None:
        self._lanes: dict[torch.dtype, _Lane] = {}
        self._sent = 0

    def __enter__(self) -> "_Return":
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes.values():
            lane.wait()

    def __call__(self, master_N: Tensor, computing_N: Tensor) -> None:
        if computing_N.device.type == "cpu":
            computing_N.copy_(master_N)
            return
        if (lane := self._lanes.get(computing_N.dtype)) is None:
            lane = self._lanes[computing_N.dtype] = _Lane(computing_N.device, computing_N.dtype)
        buffer_N = lane.buffer(self._sent, len(master_N))
        lane.send(self._sent, buffer_N.copy_(master_N), computing_N)
        self._sent += 1
