"""The local repair: a layer of the student learns by gradient to put out what the teacher's layer does.

The layer gets the stream that the repaired layers below it give, and the goal is the teacher's stream at the same
place, seen through the map between the two streams. So each layer also makes up for what those before it have lost, and
for layers of the teacher that were dropped behind it. The last layer's goal is the teacher's distribution, for nothing
else is read behind it. Nothing goes backward through more than one layer. (Blockwise
local distillation, as in NVIDIA's ModelOpt; here one block after the other, with the teacher's own stream as the goal.)

B rows, S positions, T counted tokens, D student's hidden, H teacher's.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_RATE = 0.03
"""Peak rate of Adam times the square root of hidden: 1.9e-3 at hidden 256."""
_WARMUP_STEPS = 5
_WATCHED_SHARE = 1 / 16
"""Of the batches: a layer's new weights stay only if they are better on these, which it does not learn from."""
_LEAST_SHARE = 1e-3
"""Of the median of squares: a shorter position is taken to be so long."""

Error = Callable[[int], Tensor]
"""What is to fall, of a batch: a scalar that knows its gradient."""


def learn(
    module: nn.Module, error: Error, batches: int, *, hidden: int, epochs: int, seed: int, held: torch.dtype,
    rounded: Callable[[], None],
) -> tuple[float, float]:  # fmt: skip
    """Train a layer in place, its weights in float32.

    Returns the error on watched batches before and after; a single batch is learned from and judged on. Weights come as
    the type `held` has them, in which they are kept meanwhile, and are `rounded` to what is stored before they are
    judged; a layer that does not get better keeps its old ones.
    """
    watched = max(1, int(batches * _WATCHED_SHARE)) if batches > 1 else 0
    judged = range(batches - watched if watched else 0, batches)
    before = _mean(error, judged)
    kept = {name: value.detach().to(held, copy=True) for name, value in module.state_dict().items()}
    _descend(list(module.parameters()), error, range(batches - watched), hidden, epochs, seed)
    rounded()
    after = _mean(error, judged)
    if not after < before:
        module.load_state_dict(kept)
        after = before
    return before, after


def _descend(
    parameters: Sequence[nn.Parameter], error: Error, batches: Sequence[int], hidden: int, epochs: int, seed: int
) -> None:
    peak = _RATE / math.sqrt(hidden)
    # One for each parameter, which takes its step as soon as its gradient is there, so that few gradients are held.
    # Fused: the other kinds hold temporary copies of their weights, and are slower.
    optimizers = {
        parameter: torch.optim.AdamW([parameter], lr=peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        for parameter in parameters
    }

    def descend(parameter: nn.Parameter) -> None:
        optimizer = optimizers[parameter]
        optimizer.step()
        optimizer.zero_grad()

    steps, step = epochs * len(batches), 0
    for parameter in parameters:
        parameter.requires_grad_(True)
    hooks = [
        parameter.register_post_accumulate_grad_hook(descend)  # type: ignore[no-untyped-call]
        for parameter in parameters
    ]
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        for number in torch.randperm(len(batches), generator=generator).tolist():
            warm = min(1.0, (step + 1) / _WARMUP_STEPS)
            for optimizer in optimizers.values():
                optimizer.param_groups[0]["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            torch.autograd.backward(error(number))
            step += 1
    for parameter, hook in zip(parameters, hooks, strict=True):
        parameter.requires_grad_(False)
        hook.remove()


@torch.no_grad()
def _mean(error: Error, batches: Sequence[int]) -> float:
    errors = [float(error(number)) for number in batches]
    return math.fsum(errors) / len(errors)


def relative_error(output_BSD: Tensor, goal_BSD: Tensor) -> Tensor:
    """The squared error of each position as a share of the goal's squares there, on average.

    What reads the stream divides by its length, so that no position may count for more because it is longer.
    """
    goal = goal_BSD.float()
    squares_BS = goal.square().sum(dim=-1)
    error_BS = (output_BSD.float() - goal).square().sum(dim=-1)
    return (error_BS / torch.maximum(squares_BS, _LEAST_SHARE * squares_BS.median())).mean()
