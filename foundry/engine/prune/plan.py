"""From scores to a plan: which indices of each axis stay. The decision is data; nothing is cut here."""

import torch
from torch import Tensor

from foundry.engine.prune.calibrate import Statistics
from foundry.spec.family import Family, Shape
from foundry.spec.stages import Repair
from foundry.spec.variant import PrunePlan


def make_plan(
    family: Family, teacher: Shape, shape: Shape, statistics: Statistics, repair: tuple[Repair, ...], target: str
) -> PrunePlan:
    """Keep the highest-scoring indices of every axis; heads are ranked inside their KV group."""
    layers = best(statistics.distance_L, shape.layers)
    rotated = "rotate" in repair and family.rotatable and shape.hidden < teacher.hidden
    hidden = tuple(range(shape.hidden)) if rotated else best(statistics.hidden_score_H, shape.hidden)
    return PrunePlan(
        family=family.name,
        target=target,
        teacher_shape=teacher,
        shape=shape,
        layers=layers,
        hidden=hidden,
        rotated=rotated,
        ffn=tuple(best(statistics.ffn[layer].score_C, shape.ffn) for layer in layers),
        heads=tuple(best_heads(statistics.attention[layer].score_C, teacher, shape.heads) for layer in layers),
        repair=tuple(r for r in repair if r != "rotate" or rotated),
    )


def best(score_N: Tensor, keep: int) -> tuple[int, ...]:
    """The indices of the `keep` highest scores, in ascending order; ties go to the lower index."""
    order = torch.sort(score_N, descending=True, stable=True).indices
    return tuple(sorted(order[:keep].tolist()))


def best_heads(score_A: Tensor, teacher: Shape, keep: int) -> tuple[int, ...]:
    """The best query heads, the same number from each KV group, so that grouped attention stays regular.

    A head's score is the L2 norm of its channels' scores. `score_A` is heads x head_dim long.
    """
    score_per_head = score_A.view(teacher.heads, teacher.head_dim).norm(dim=1)
    group = teacher.heads // teacher.kv_heads
    keep_per_group = keep // teacher.kv_heads
    kept = []
    for start in range(0, teacher.heads, group):
        kept += [start + index for index in best(score_per_head[start : start + group], keep_per_group)]
    return tuple(kept)
