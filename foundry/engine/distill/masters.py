"""float32 weights behind a model that computes with bfloat16 ones.

An update is often smaller than the gap between a weight's neighbours in bfloat16, and would be lost there. So what
learns are the masters; the model has them rounded, which is also how it is shipped. Gradients are added up in float32,
on the model's device. Masters and moments may lie in the machine's memory instead (`HostAdamW`): for a model of
8.4e9 parameters they take 101 GB, and what stays on the accelerator, its weights and gradients, 50.
"""

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Masters:
    """The masters of named parameters, and the gradients that these parameters get in backward passes."""

    def __init__(self, computing: Mapping[str, nn.Parameter], *, on_host: bool) -> None:
        """`on_host` puts the masters into the machine's memory, else they lie beside the parameters."""
        self.computing, self.on_host = computing, on_host
        self.weights = {
            name: nn.Parameter(p.detach().to("cpu" if on_host else p.device, torch.float32, copy=True))
            for name, p in computing.items()
        }
        self.gradients: dict[str, Tensor] = {}
        """float32, on the device of the parameters."""
        take = weakref.WeakMethod(self._take)  # a parameter that held on to its masters would never be freed
        for name, parameter in computing.items():
            parameter.register_post_accumulate_grad_hook(partial(_hand, take, name))  # type: ignore[no-untyped-call]

    def add(self, name: str, gradient: Tensor) -> None:
        """Add to a parameter's gradient, which may become its own."""
        known = self.gradients.get(name)
        if known is None:
            self.gradients[name] = gradient.float()
        elif known is not gradient:
            known.add_(gradient)

    def hand_over(self) -> None:
        """Give masters that lie beside the parameters their gradients, for an optimizer that looks for them there."""
        if not self.on_host:
            for name, gradient in self.gradients.items():
                self.weights[name].grad = gradient

    def forget(self) -> None:
        """Drop the gradients, those too that a failed backward pass has left with the parameters."""
        self.gradients.clear()
        for parameter in self.computing.values():
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Give the model the masters, rounded."""
        for name, parameter in self.computing.items():
            parameter.copy_(self.weights[name])

    def _take(self, name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        self.add(name, gradient)


def _hand(take: "weakref.WeakMethod[Any]", name: str, parameter: Tensor) -> None:
    if (method := take()) is not None:
        method(name, parameter)
