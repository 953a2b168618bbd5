"""One model in training: its weights or float32 masters of them, gradients, optimizer, average, and their state.

B: rows, S: tokens of a row, T: counted tokens, V: vocabulary, H: hidden.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.attention import attend_within_documents
from foundry.engine.distill.hidden import HiddenMatch, watching
from foundry.engine.distill.losses import Head, Scored
from foundry.engine.distill.masters import Masters
from foundry.engine.distill.optimizers import Update
from foundry.engine.distill.parallel import ALONE, Ranks, own, part_of, whole
from foundry.engine.models import trunk_and_head
from foundry.engine.norms import fuse_norms
from foundry.engine.packed import Batch
from foundry.engine.products import trunk_hidden
from foundry.errors import DamagedCheckpoint
from foundry.spec.stages import OptimizerName

Score = Callable[[Tensor, Head], Scored]
"""From hidden states [T, H] of counted tokens and the output matrix to a loss with its gradients."""


class Lesson(NamedTuple):
    """What a batch asks of every learner."""

    score: Score
    scale: float
    """Losses are multiplied by it."""
    states: Mapping[int, Tensor] = MappingProxyType({})
    """The teacher's hidden states [T, hidden] behind some of its layers."""


_LARGEST_GRADIENT = 1.0
_PROJECTION = "hidden.projection"


class Learner:
    """Trains the parameters of `model` that require a gradient.

    Where the model holds them in less than float32, float32 masters learn in their place; those and their moments may
    lie in the machine's memory (`on_host`). With `ema_decay`, what is measured and shipped is a moving average of the
    weights: each update keeps this share of it, less at first, where the average would otherwise remember the untrained
    student. With `keeps_best`, what is shipped are the weights of the last `remember`. Of several `ranks` each calls
    everything, with its own rows.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, dtype: torch.dtype, *,
        optimizer: OptimizerName = "adamw", ema_decay: float | None = None, keeps_best: bool = False,
        hidden: HiddenMatch | None = None, ranks: Ranks = ALONE, on_host: bool = False,
    ) -> None:  # fmt: skip
        attend_within_documents(model, dtype)
        fuse_norms(model)
        self.name, self.model, self._dtype, self._ranks = name, model, dtype, ranks
        self._trunk, head_VH, softcap = trunk_and_head(model)
        self._head = Head(head_VH, softcap)
        computing = {n: p for n, p in model.named_parameters() if p.requires_grad}
        ends = (model.get_input_embeddings().weight, head_VH)
        embeddings = {name for name, p in computing.items() if any(p is end for end in ends)}
        self._head_name = next((name for name, p in computing.items() if p is head_VH), None)
        rounded = any(p.dtype != torch.float32 for p in computing.values())
        self._masters = Masters(computing, on_host=on_host) if rounded else None
        self._trained = dict(self._masters.weights) if self._masters else computing
        self._hidden = hidden
        if hidden is not None and hidden.projection is not None:
            hidden.projection = ranks.sharded(hidden.projection)
            self._trained[_PROJECTION] = hidden.projection
        self._update = Update(self._trained, embeddings, optimizer, self._masters if on_host else None)
        self._ema_decay, self._updates = ema_decay, 0
        self._average = self._copies() if ema_decay is not None else {}
        self._best = self._copies() if keeps_best else {}
        self.model.train()

    def hidden(self, batch: Batch) -> Tensor:
        """What the head reads [B, S, H]."""
        return trunk_hidden(self._trunk, batch.model_inputs(), self._dtype, batch.ids_BS.device)

    @property
    def state_bytes(self) -> int:
        """What training will take beside weights and activations where the model lies: gradients and moments."""
        moments = 0 if self._masters and self._masters.on_host else 2
        return sum((1 + moments) * own(parameter).nbytes for parameter in self._trained.values())

    def accumulate(self, batch: Batch, lesson: Lesson) -> float:
        """Add the gradients of one micro-batch; return its loss, that of hidden states not counted."""
        with watching(self.model, self._watched) as states:
            hidden_BSH = self.hidden(batch)
        head = self._head._replace(gradient_VH=self._head_gradient())
        scored = lesson.score(hidden_BSH.detach()[batch.targets_BS], head)
        gradient_BSH = torch.zeros_like(hidden_BSH)
        gradient_BSH[batch.targets_BS] = scored.hidden_TH.to(hidden_BSH.dtype)
        outputs, gradients = [hidden_BSH], [gradient_BSH]
        if self._hidden is not None:
            self._hidden.add_logit_loss(float(scored.total))
            more = self._hidden.gradients(states, lesson.states, batch.targets_BS, lesson.scale, self._ranks)
            outputs, gradients = outputs + more[0], gradients + more[1]
        torch.autograd.backward(outputs, gradients)
        if scored.head_VH is not None and scored.head_VH is not head.gradient_VH:
            self._add_to_head(scored.head_VH)
        return float(scored.total)

    def _head_gradient(self) -> Tensor | None:
        """The gradient so far of an output matrix that this process has whole."""
        if self._head_name is None or self._ranks.mesh is not None:
            return None
        return self._masters.gradients.get(self._head_name) if self._masters else self._head.weight_VH.grad

    def _add_to_head(self, gradient_VH: Tensor) -> None:
        if self._masters:
            assert self._head_name is not None
            self._masters.add(self._head_name, gradient_VH)
            return
        weight = self._head.weight_VH
        gradient = self._ranks.share_of(gradient_VH, weight)
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def update(self, rate: float) -> float:
        """One step with the gathered gradients, clipped; return their norm before clipping.

        Nothing is changed when the norm is not a number.
        """
        norm = self._clip()
        if math.isfinite(norm):
            self._update.step(rate)
            self._updates += 1
            if self._masters and not self._masters.on_host:  # an update on the host gives them back itself
                self._masters.publish()
            self._follow()
            if self._hidden is not None:
                self._hidden.balance(self._ranks)
        self.forget()
        return norm

    def _clip(self) -> float:
        """Scale the gathered gradients down to the largest norm that is allowed; return the norm before."""
        if not (self._masters and self._masters.on_host):
            if self._masters:
                self._masters.hand_over()
            return float(whole(nn.utils.clip_grad_norm_(self._trained.values(), _LARGEST_GRADIENT, foreach=True)))
        beside = [p.grad for p in self._trained.values() if p.grad is not None]
        there = self._masters.gradients
        # In the order of the parameters, as beside the model: the norm is the same to the last bit.
        gradients = [*(there[name] for name in self._trained if name in there), *beside]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        torch._foreach_mul_(gradients, (_LARGEST_GRADIENT / (norm + 1e-6)).clamp(max=1.0))
        return float(norm)

    def forget(self) -> None:
        """Drop the gathered gradients."""
        self._update.forget()
        if self._masters:
            self._masters.forget()
        if self._hidden is not None:
            self._hidden.forget()

    @contextmanager
    def as_shipped(self) -> Iterator[None]:
        """Within this the model is in eval mode and has the weights that would be shipped now."""
        self._swap()
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            self._swap()

    def remember(self) -> None:
        """Take the weights as they would be shipped now for the best so far."""
        for name, best in self._best.items():
            own(best).copy_(own(self._average.get(name, self._trained[name])))

    def settle(self) -> None:
        """End the training: the model gets the weights that are shipped."""
        for name, weights in (self._best or self._average).items():
            own(self._trained[name]).copy_(own(weights))
        self.publish()

    def publish(self) -> None:
        """Give the model what the masters hold, where it has masters: after someone else has written to the state."""
        if self._masters:
            self._masters.publish()

    def state(self) -> dict[str, Tensor]:
        """Everything that changes in training, by name; restoring it continues the run bit for bit."""
        return {name: tensor.detach() for name, tensor in self._tensors()}

    def begin(self, step: int) -> None:
        """Make room for the state as it is after `step` updates; the caller fills it in."""
        self._update.begin(step)
        self._updates = step

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take over `state` as it was after `step` updates. Raises `DamagedCheckpoint` when a tensor does not fit."""
        self.begin(step)
        mine = self.state()
        if mine.keys() != state.keys() or any(mine[name].shape != state[name].shape for name in mine):
            raise DamagedCheckpoint(f"the checkpoint of {self.name} holds other tensors than the model")
        for name, tensor in mine.items():
            own(tensor).copy_(part_of(state[name].to(tensor.device), tensor))
        self.publish()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._trained.items():
            yield f"weight.{name}", parameter
        if self._hidden is not None:
            yield "hidden.weight", self._hidden.weight
        yield from self._update.tensors()
        for kind, tensors in (("average", self._average), ("best", self._best)):
            for name, tensor in tensors.items():
                yield f"{kind}.{name}", tensor

    @property
    def _watched(self) -> tuple[int, ...]:
        return tuple(layer for layer, _ in self._hidden.pairs.layers) if self._hidden is not None else ()

    def _copies(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    @torch.no_grad()
    def _follow(self) -> None:
        if self._ema_decay is None:
            return
        # As TensorFlow's ExponentialMovingAverage does with num_updates.
        kept = min(self._ema_decay, (1 + self._updates) / (10 + self._updates))
        averages = [own(average) for average in self._average.values()]
        torch._foreach_lerp_(averages, [own(self._trained[name]) for name in self._average], 1 - kept)

    def _swap(self) -> None:
        # By value: FSDP holds on to the memory of its parameters.
        for name, average in self._average.items():
            mine, theirs = own(self._trained[name]), own(average)
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)
        if self._average:
            self.publish()
