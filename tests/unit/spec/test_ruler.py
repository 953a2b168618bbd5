"""The fast figures equal the plain ones, and the search that uses them equals looking at every shape."""

import time
from itertools import product
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.errors import BudgetUnreachable
from foundry.spec.family import Family, families
from foundry.spec.formats import FORMATS
from foundry.spec.ruler import Cut, Ruler
from foundry.spec.search import choices, shapes_within
from foundry.spec.stages import Axis
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

AXES: tuple[Axis, ...] = ("ffn", "hidden", "heads", "kv_heads", "layers", "experts")


class Teacher(NamedTuple):
    family: Family
    shape: Shape
    present: frozenset[str]


@st.composite
def _teachers(draw: st.DrawFn) -> Teacher:
    """A small model of any family: grouped, multi-head or multi-query attention, dense or with experts."""
    family = families()[draw(st.sampled_from(sorted(families())))]
    multi_head = family.heads_fill_hidden or "kv_heads" not in family.config
    kv_heads, group = draw(st.integers(1, 5)), 1 if multi_head else draw(st.integers(1, 4))
    heads, head_dim = kv_heads * group, draw(st.sampled_from([8, 16]))
    filled = heads * head_dim
    has_experts = "experts" in family.config
    shape = Shape(
        layers=draw(st.integers(1, 9)),
        hidden=filled if family.heads_fill_hidden else draw(st.sampled_from([filled, 96, 160, 288])),
        ffn=draw(st.sampled_from([64, 100, 416, 768])), heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        vocab=draw(st.sampled_from([97, 4096])), tied=draw(st.booleans()),
        experts=draw(st.sampled_from([2, 6, 40])) if has_experts else 0, experts_per_token=2 if has_experts else 0,
        positions=64 if "positions" in family.config else 0,
    )  # fmt: skip
    optional = sorted(weight.name for weight in family.weights if weight.optional)
    present = draw(st.sets(st.sampled_from(optional))) if optional else set()
    return Teacher(family, shape, frozenset(present))


@st.composite
def _budgets(draw: st.DrawFn, teacher: Teacher) -> Budget:
    budget = Budget(
        target="t", format=draw(st.sampled_from(FORMATS)), context_tokens=draw(st.sampled_from([64, 512])), max_bytes=1,
        adapter_rank=draw(st.sampled_from([0, 4])),
    )  # fmt: skip
    share = draw(st.floats(0.02, 1))
    if draw(st.booleans()):
        whole = teacher.family.parameter_count(teacher.shape, teacher.present)
        limit: dict[str, Any] = {"max_bytes": None, "max_params": int(share * whole) or 1}
    else:
        limit = {"max_bytes": int(share * budget.used_bytes(*teacher)) or 1}
    return budget.model_copy(update=limit)


def _every_shape(teacher: Teacher, axes: tuple[Axis, ...], form: str) -> list[Shape]:
    """Every product of the lengths along single axes, less those that no model has, llama.cpp or no axis allows."""
    family, shape, present = teacher
    in_step = family.heads_fill_hidden
    if form.startswith("gguf:"):
        in_step = in_step or (family.gguf_heads_fill_hidden and shape.hidden == shape.heads * shape.head_dim)
        axes = tuple(axis for axis in axes if axis != "layers" or not family.gguf_needs_every_layer)
    if in_step and not {"hidden", "heads"} <= set(axes):
        axes = tuple(axis for axis in axes if axis not in ("hidden", "heads", "kv_heads"))
    grid = choices(shape, axes)
    if in_step:
        grid["hidden"] = [heads * shape.head_dim for heads in grid["heads"]]
    group = shape.heads // shape.kv_heads

    def exists(cut: Shape) -> bool:
        of_each, rest = divmod(cut.heads, cut.kv_heads)
        if rest or of_each > group or ("heads" not in axes and of_each < group):
            return False
        if in_step:
            return cut.hidden == cut.heads * cut.head_dim
        refused = family.hidden_multiple_of_heads and shape.hidden % shape.heads == 0
        refused = refused and (family.carrier is None or bool(present))
        return not refused or cut.hidden % cut.heads == 0

    cuts = (dict(zip(grid, lengths, strict=True)) for lengths in product(*grid.values()))
    return [made for made in (shape.model_copy(update=cut) for cut in cuts) if exists(made)]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), teacher=_teachers())
def test_ruler_equals_budget_for_every_shape(data: st.DataObject, teacher: Teacher) -> None:
    budget = data.draw(_budgets(teacher))
    family, whole, present = teacher
    cut = {
        "layers": st.integers(1, 9), "hidden": st.sampled_from([32, 96, 512]), "ffn": st.integers(8, 300),
        "heads": st.integers(1, 6), "kv_heads": st.integers(1, 6),
        "experts": st.integers(2, 9) if whole.experts else st.just(0),
    }  # fmt: skip
    shape = whole.model_copy(update={axis: data.draw(lengths) for axis, lengths in cut.items()})
    used = Ruler(family, whole, budget, present).used(Cut.of(shape))
    expected = (
        family.parameter_count(shape, present) if budget.max_params else budget.used_bytes(family, shape, present)
    )
    assert used == expected


@settings(max_examples=150, deadline=None)
@given(data=st.data(), teacher=_teachers(), axes=st.sets(st.sampled_from(AXES)))
def test_shapes_within_equals_looking_at_every_shape(data: st.DataObject, teacher: Teacher, axes: set[Axis]) -> None:
    """Every shape is measured by the ruler: the test above holds that to the plain figures."""
    budget = data.draw(_budgets(teacher))
    allowed = tuple(sorted(axes))
    family, whole, present = teacher
    every, ruler = _every_shape(teacher, allowed, budget.format), Ruler(family, whole, budget, present)
    used = {Cut.of(shape): ruler.used(Cut.of(shape)) for shape in every}
    fitting = [cut for cut, size in used.items() if size <= (budget.max_params or budget.max_bytes or 0)]
    try:
        found = shapes_within(family, whole, budget, allowed, present)
    except BudgetUnreachable as error:
        assert not fitting
        least = min(used.values())
        assert least == (error.smallest_params if budget.max_params else error.smallest_bytes)
        return
    assert {Cut.of(shape) for shape in found} == _undominated(fitting)
    assert len(found) == len(set(found)) and all(budget.share(family, shape, present) <= 1 for shape in found)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_no_shape_is_dominated_where_heads_that_fill_hidden_go_with_several_numbers_of_kv_heads(share: float) -> None:
    family = families()["glm"]
    whole = Shape(layers=2, hidden=72, ffn=64, heads=9, kv_heads=3, head_dim=8, vocab=97, tied=False)
    budget = Budget(target="t", format="gguf:q8_0", context_tokens=64, max_bytes=1)
    limit = int(share * budget.used_bytes(family, whole, frozenset()))
    axes: tuple[Axis, ...] = ("ffn", "heads", "hidden", "kv_heads")
    ruler = Ruler(family, whole, budget, frozenset())
    every = {Cut.of(shape) for shape in _every_shape(Teacher(family, whole, frozenset()), axes, budget.format)}
    fitting = [cut for cut in every if ruler.used(cut) <= limit]
    if not fitting:
        limit = min(map(ruler.used, every))
        fitting = [cut for cut in every if ruler.used(cut) <= limit]
    found = shapes_within(family, whole, budget.model_copy(update={"max_bytes": limit}), axes)
    assert {Cut.of(shape) for shape in found} == _undominated(fitting)


def _undominated(cuts: list[Cut]) -> set[Cut]:
    """Those that no other has or exceeds along every axis; one that does comes earlier, for it is larger in all."""
    kept: list[Cut] = []
    for cut in sorted(cuts, reverse=True):
        if not any(all(o >= n for o, n in zip(other, cut, strict=True)) for other in kept):
            kept.append(cut)
    return set(kept)


@pytest.mark.parametrize(
    ("name", "shape", "max_bytes"),
    [
        ("llama", Shape(
            layers=80, hidden=8192, ffn=28672, heads=64, kv_heads=8, head_dim=128, vocab=128256, tied=False,
        ), 3_000_000_000),
        ("qwen3_moe", Shape(
            layers=48, hidden=2048, ffn=768, heads=32, kv_heads=4, head_dim=128, vocab=151936, tied=False,
            experts=128, experts_per_token=8,
        ), 6_000_000_000),
    ],
    ids=["70-billion", "30-billion-in-experts"],
)  # fmt: skip
def test_shapes_within_answers_soon_when_the_teacher_is_large(name: str, shape: Shape, max_bytes: int) -> None:
    family = families()[name]
    budget = Budget(target="t", format="gguf:q4_k_m", context_tokens=4096, max_bytes=max_bytes)
    began_at = time.monotonic()
    found = shapes_within(family, shape, budget, AXES)
    assert len(found) > 10
    assert all(budget.share(family, shape) <= 1 for shape in found)
    with pytest.raises(BudgetUnreachable):
        shapes_within(family, shape, budget.model_copy(update={"max_bytes": 1000}), AXES)
    assert time.monotonic() - began_at < 30  # looking at each of its millions of shapes would take hours
