"""Which layers to keep: those with which alone the teacher predicts best.

N rows, S positions, H hidden.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foundry.engine.context import RunContext
from foundry.engine.evaluate.compare import Outputs, figures_of
from foundry.engine.products import inner_dtype, operand
from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.texts import Texts

Layers = tuple[int, ...]


def choose_layers(
    distance_L: Sequence[float], keep: int, losses: Callable[[Sequence[Layers]], Sequence[float]]
) -> tuple[Layers, float]:
    """Which layers to keep, and the loss of the model with those alone; the layers that follow take the gap as it is.

    Compared are the layers that move the stream most (`distance_L`, ShortGPT, arXiv 2403.03853) and every way to lose
    one contiguous block, which the larger cuts of Minitron were (2408.11796).
    """
    layers = range(len(distance_L))
    farthest = sorted(sorted(layers, key=lambda layer: -distance_L[layer])[:keep])
    lost = len(distance_L) - keep
    blocks = [tuple(i for i in layers if not start <= i < start + lost) for start in range(keep + 1)]
    sets = list(dict.fromkeys([tuple(farthest), *blocks]))
    return min(zip(sets, losses(sets), strict=True), key=lambda item: item[1])


@torch.no_grad()
def losses_with(teacher: StreamedModel, texts: Texts, sets: Sequence[Layers], context: RunContext) -> list[float]:
    """The teacher's loss on the depth text with each set of layers alone, nats per token.

    One pass for all: each layer is loaded once, and sets that agree up to a layer share the stream so far. Raises
    `Stopped`.
    """
    batches = texts.batches(texts.depth)
    with teacher.beginning() as begin:
        first = [begin(texts.inputs(rows, context.device)) for rows in batches]
    streams: dict[Layers, list[Tensor]] = {(): first}
    for layer in range(teacher.shape.layers):
        context.heed()
        # The layers that each set has kept up to here name its stream.
        moved: dict[Layers, list[Tensor]] = {}
        with teacher.layer(layer):
            for kept in dict.fromkeys(tuple(i for i in kept if i <= layer) for kept in sets):
                if kept and kept[-1] == layer:
                    moved[kept] = [
                        teacher.run(layer, texts.inputs(rows, context.device), stream)
                        for rows, stream in zip(batches, streams[kept[:-1]], strict=True)
                    ]
                else:
                    moved[kept] = streams[kept]
        streams = moved
    with teacher.end() as end, inner_dtype(context.dtype, context.device):
        head_VH = operand(end.head_VH, context.dtype)
        losses = []
        for kept in sets:
            total = 0.0
            for rows, stream in zip(batches, streams[tuple(kept)], strict=True):
                targets_BS, labels_T = texts.labels(rows, context.device)
                read = operand(end.hidden(stream)[targets_BS], context.dtype)
                total += float(figures_of(labels_T, Outputs(read, head_VH, end.softcap))[:, 0].sum())
            losses.append(total / texts.counted(texts.depth))
    return losses
