"""One model in training: float32 master weights, gradients, AdamW, and their state as plain tensors.

B: rows, S: tokens of a row, T: counted tokens, V: vocabulary, H: hidden.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.corpus import Batch
from foundry.engine.distill.losses import Head, Scored
from foundry.engine.models import trunk_and_head
from foundry.engine.products import trunk_hidden
from foundry.errors import DamagedCheckpoint

Score = Callable[[Tensor, Head], Scored]
"""From hidden states [T, H] of counted tokens and the output matrix to a loss with its gradients."""

_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.1
_LARGEST_GRADIENT = 1.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Learner:
    """Trains the parameters of `model` that require a gradient."""

    def __init__(self, name: str, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.name, self.model, self._dtype = name, model, dtype
        self._trunk, head_VH, softcap = trunk_and_head(model)
        self._head = Head(head_VH, softcap)
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        embeddings = {id(model.get_input_embeddings().weight), id(head_VH)}
        decayed = [p for p in self._trained.values() if p.ndim >= 2 and id(p) not in embeddings]
        others = [p for p in self._trained.values() if p.ndim < 2 or id(p) in embeddings]
        groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=_BETAS, fused=True)
        self.model.train()

    def accumulate(self, batch: Batch, score: Score) -> float:
        """Add the gradients of one micro-batch; return its loss."""
        hidden_BSH = trunk_hidden(self._trunk, batch.model_inputs(), self._dtype, batch.ids_BS.device)
        scored = score(hidden_BSH.detach()[batch.targets_BS], self._head)
        gradient_BSH = torch.zeros_like(hidden_BSH)
        gradient_BSH[batch.targets_BS] = scored.hidden_TH.to(hidden_BSH.dtype)
        hidden_BSH.backward(gradient_BSH)  # type: ignore[no-untyped-call]
        if scored.head_VH is not None:
            weight = self._head.weight_VH
            weight.grad = scored.head_VH if weight.grad is None else weight.grad.add_(scored.head_VH)
        return float(scored.total)

    def update(self, rate: float) -> float:
        """One step of AdamW with the gathered gradients, clipped; return their norm before clipping.

        Nothing is changed when the norm is not a number.
        """
        norm = float(nn.utils.clip_grad_norm_(self._trained.values(), _LARGEST_GRADIENT, foreach=True))
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        self.forget()
        return norm

    def forget(self) -> None:
        """Drop the gathered gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Weights in training and both moments, by name; restoring them continues the run bit for bit."""
        return {name: tensor.detach() for name, tensor in self._tensors()}

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take over `state` as it was after `step` updates. Raises `DamagedCheckpoint` when a tensor does not fit."""
        for parameter in self._trained.values():
            moments = {key: torch.zeros_like(parameter) for key in _MOMENTS}
            done = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
            self._optimizer.state[parameter] = {"step": done, **moments}
        own = dict(self._tensors())
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise DamagedCheckpoint(f"the checkpoint of {self.name} holds other tensors than the model")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._trained.items():
            yield f"weight.{name}", parameter
            for key in _MOMENTS:
                if parameter in self._optimizer.state:
                    yield f"{key}.{name}", self._optimizer.state[parameter][key]
