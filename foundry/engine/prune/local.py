"""The local repair: every layer of the student learns to put out what the teacher's layer does.

Layer by layer from below: the student's layer gets the stream that the layers below it give, already repaired, and
learns by gradient to reach the teacher's stream, seen through the map between the two streams. So each layer also makes
up for what those before it have lost, and for layers of the teacher that were dropped behind it. No logits and no
backward pass through more than one layer. (Blockwise local distillation, as in NVIDIA's ModelOpt; here one block after
the other, with the teacher's own stream as the goal.)

B rows, S positions, H teacher's hidden, D student's hidden.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import Packed
from foundry.engine.distill.memory import total_bytes
from foundry.engine.prune.layers import Layers
from foundry.spec.family import Family
from foundry.spec.lifecycle import Progress
from foundry.spec.variant import PrunePlan

_BATCH_TOKENS = 2048
_BRIEF_TOKENS = 8192
_RATE = 0.016
"""Peak rate of Adam times the square root of hidden: 1e-3 at hidden 256."""
_WARMUP_STEPS = 5
_STREAMS_SHARE = 0.2
"""Of the memory, for the streams of all batches: the teacher's, the student's and its goals."""
_WATCHED_SHARE = 1 / 16
"""Of the batches: a layer's new weights stay only if they are better on these, which it does not learn from."""


def repair_locally(
    student: PreTrainedModel, teacher: PreTrainedModel, family: Family, plan: PrunePlan, axes_HD: Tensor, text: Packed,
    context: RunContext, *, epochs: int,
) -> list[tuple[float, float]]:  # fmt: skip
    """Train the student's layers in place; its weights must be float32.

    Returns for each layer the relative squared error of its output on watched text before and after. A layer that does
    not get better keeps its weights. Raises `Stopped` between layers.
    """
    run = _Run(student, teacher, family, plan, axes_HD, text, context)
    errors = []
    for layer in range(plan.shape.layers):
        if context.should_stop():
            raise Stopped
        errors.append(run.repair(layer, epochs))
        context.progress(Progress(stage="prune", step=layer + 1, steps=plan.shape.layers))
    return errors


def repair_briefly(
    student: PreTrainedModel, teacher: PreTrainedModel, family: Family, plan: PrunePlan, axes_HD: Tensor, text: Packed,
    context: RunContext,
) -> None:  # fmt: skip
    """Enough of `repair_locally` to compare shapes by; closed-form repairs alone favour cuts of hidden too much."""
    rows = max(1, _BRIEF_TOKENS // text.sequence_tokens)
    brief = Packed(text.ids_NS[:rows], text.positions_NS[:rows], text.targets_NS[:rows], text.bytes)
    silent = replace(context, emit=lambda event: None)
    repair_locally(student, teacher, family, plan, axes_HD, brief, silent, epochs=1)


class _Run:
    """The two models and their streams, which move up one layer at a time."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, family: Family, plan: PrunePlan, axes_HD: Tensor,
        text: Packed, context: RunContext,
    ) -> None:  # fmt: skip
        self.plan, self.axes_HD, self.context = plan, axes_HD, context
        self.student = Layers(student, family, plan.shape.layers)
        self.teacher = Layers(teacher, family, plan.teacher_shape.layers)
        rows = max(1, _BATCH_TOKENS // text.sequence_tokens)
        token_bytes = torch.finfo(context.dtype).bits // 8 * (plan.teacher_shape.hidden + 2 * plan.shape.hidden)
        fitting = int(_STREAMS_SHARE * total_bytes(context.device) / token_bytes / (rows * text.sequence_tokens))
        batches = islice(text.batches(rows, context.device), max(2, fitting))
        self.inputs = [batch.model_inputs() for batch in batches]
        self.watched = max(1, int(len(self.inputs) * _WATCHED_SHARE)) if len(self.inputs) > 1 else 0
        with torch.no_grad():
            self.teacher_streams = [self._held(self.teacher.stream(inputs)) for inputs in self.inputs]
            self.student_streams = [self._held(self.student.stream(inputs)) for inputs in self.inputs]

    def _held(self, stream: Tensor) -> Tensor:
        return stream.to(self.context.dtype)

    def repair(self, layer: int, epochs: int) -> tuple[float, float]:
        goals = self._advance_teacher(layer)
        module = self.student[layer]
        before = self._error(layer, goals)
        kept = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._learn(module, layer, goals, epochs)
        after = self._error(layer, goals)
        if not after < before:
            module.load_state_dict(kept)
            after = before
        with torch.no_grad():
            self.student_streams = [
                self._held(self._output(layer, number)) for number in range(len(self.student_streams))
            ]
        return before, after

    def _advance_teacher(self, layer: int) -> list[Tensor]:
        """Move the teacher's streams to where the student's next layer begins; return them as the student sees them."""
        following = (*self.plan.layers[1:], self.plan.teacher_shape.layers)[layer]
        first = self.plan.layers[layer]
        if layer == 0 and first:  # layers dropped from the very bottom
            first = 0
        goals = []
        with torch.no_grad():
            for number, inputs in enumerate(self.inputs):
                stream = self.teacher_streams[number]
                for teacher_layer in range(first, following):
                    with self._autocast():
                        stream = self._held(self.teacher.run(teacher_layer, inputs, stream))
                self.teacher_streams[number] = stream
                goals.append(self._held(stream.float() @ self.axes_HD))
        return goals

    def _learn(self, module: nn.Module, layer: int, goals: Sequence[Tensor], epochs: int) -> None:
        parameters = list(module.parameters())
        peak = _RATE / math.sqrt(self.plan.shape.hidden)
        optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
        learned = range(len(goals) - self.watched)
        steps, step = epochs * len(learned), 0
        for parameter in parameters:
            parameter.requires_grad_(True)
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(self.context.seed + epoch)
            for number in torch.randperm(len(learned), generator=generator).tolist():
                warm = min(1.0, (step + 1) / _WARMUP_STEPS)
                for group in optimizer.param_groups:
                    group["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
                torch.autograd.backward(_relative(self._output(layer, number), goals[number]))
                optimizer.step()
                optimizer.zero_grad()
                step += 1
        for parameter in parameters:
            parameter.requires_grad_(False)

    def _output(self, layer: int, number: int) -> Tensor:
        with self._autocast():
            return self.student.run(layer, self.inputs[number], self.student_streams[number])

    def _error(self, layer: int, goals: Sequence[Tensor]) -> float:
        """On the watched batches; on all where there is only one."""
        watched = range(len(goals) - self.watched if self.watched else 0, len(goals))
        with torch.no_grad():
            errors = [float(_relative(self._output(layer, number), goals[number])) for number in watched]
        return math.fsum(errors) / len(errors)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.context.device.type, self.context.dtype, enabled=self.context.dtype != torch.float32)


def _relative(output_BSD: Tensor, goal_BSD: Tensor) -> Tensor:
    """The squared error as a share of the goal's squares."""
    goal = goal_BSD.float()
    return (output_BSD.float() - goal).square().mean() / goal.square().mean()
