"""From scores to a plan: which indices of each axis stay. The decision is data; nothing is cut here."""

import torch
from torch import Tensor

from foundry.engine.prune.statistics import Channels, LayerStatistics, Statistics
from foundry.spec.family import Family
from foundry.spec.stages import Repair
from foundry.spec.variant import PrunePlan
from foundry.spec.weights import Shape, parts


def make_plan(
    family: Family, teacher: Shape, shape: Shape, statistics: Statistics, repair: tuple[Repair, ...], target: str,
    layers: tuple[int, ...] | None = None,
) -> PrunePlan:  # fmt: skip
    """Keep the highest-scoring indices of every axis; heads are ranked inside their KV group.

    `layers` are those to keep where something better than their distance has chosen them.
    """
    layers = layers or best(statistics.distance_L, shape.layers)
    rotated = "rotate" in repair and shape.hidden < teacher.hidden
    hidden = tuple(range(shape.hidden)) if rotated else best(statistics.hidden_score_H, shape.hidden)
    found = [statistics.layers[layer] for layer in layers]
    kv_heads = [best_kv_heads(layer.attention.contribution_C, teacher, shape.kv_heads) for layer in found]
    experts = [best(layer.expert_score_E, shape.experts) if shape.experts else () for layer in found]
    return PrunePlan(
        family=family.name,
        target=target,
        teacher_shape=teacher,
        shape=shape,
        layers=layers,
        hidden=hidden,
        rotated=rotated,
        ffn=tuple(
            best(channels.contribution_C, shape.ffn)
            for layer, kept in zip(found, experts, strict=True)
            for channels in _of_kept_experts(layer, kept)
        ),
        heads=tuple(
            best_heads(layer.attention.contribution_C, teacher, shape, kept)
            for layer, kept in zip(found, kv_heads, strict=True)
        ),
        kv_heads=tuple(kv_heads) if shape.kv_heads < teacher.kv_heads else (),
        experts=tuple(experts) if shape.experts < teacher.experts else (),
        repair=tuple(r for r in repair if r != "rotate" or rotated),
    )


def _of_kept_experts(layer: LayerStatistics, kept: tuple[int, ...]) -> list[Channels]:
    return [layer.ffn[expert] for expert in kept] if kept else layer.ffn


def best(score_N: Tensor, keep: int) -> tuple[int, ...]:
    """The indices of the `keep` highest scores, in ascending order; ties go to the lower index."""
    order = torch.sort(score_N, descending=True, stable=True).indices
    return tuple(sorted(order[:keep].tolist()))


def _score_per_head(score_A: Tensor, teacher: Shape) -> Tensor:
    """L2 norm over a head's channels. `score_A` is heads x head_dim long."""
    norms: Tensor = score_A.view(teacher.heads, teacher.head_dim).norm(dim=1)
    return norms


def best_kv_heads(score_A: Tensor, teacher: Shape, keep: int) -> tuple[int, ...]:
    """The KV heads whose groups of query heads score highest together (L2 over the group)."""
    return best(_score_per_head(score_A, teacher).view(teacher.kv_heads, -1).norm(dim=1), keep)


def best_heads(score_A: Tensor, teacher: Shape, shape: Shape, kv_heads: tuple[int, ...]) -> tuple[int, ...]:
    """The best query heads, the same number from each KV group that stays, so that grouped attention stays regular."""
    score_per_head = _score_per_head(score_A, teacher)
    group = teacher.heads // teacher.kv_heads
    keep_per_group = shape.heads // shape.kv_heads
    return tuple(
        kv_head * group + index
        for kv_head in kv_heads
        for index in best(score_per_head[kv_head * group : (kv_head + 1) * group], keep_per_group)
    )


def kept_rows(plan: PrunePlan, dimension: str, layer: int, expert: int = 0) -> list[int]:
    """The teacher's rows (or columns) that a dimension of the student's layer keeps, in order.

    `layer` and `expert` count in the student. A dimension that carries hidden keeps `plan.hidden`; a rotated plan cuts
    those by the principal axes instead, and this must not be asked.
    """
    teacher = plan.teacher_shape
    rows: list[int] = []
    start = 0
    for axis, times in parts(dimension):
        size = teacher.unit(axis) * times
        count = int(getattr(teacher, axis))
        for index in _kept_indices(plan, axis, layer, expert) or range(count):
            rows += range(start + index * size, start + (index + 1) * size)
        start += count * size
    return rows


def _kept_indices(plan: PrunePlan, axis: str, layer: int, expert: int) -> tuple[int, ...]:
    """Empty for an axis that no plan cuts."""
    if axis == "hidden":
        return plan.hidden
    if axis == "ffn":
        return plan.ffn[layer * max(1, plan.shape.experts) + expert]
    per_layer = {"heads": plan.heads, "kv_heads": plan.kv_heads, "experts": plan.experts}.get(axis)
    return per_layer[layer] if per_layer else ()
