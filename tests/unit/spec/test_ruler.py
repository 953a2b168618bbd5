"""The fast figures equal the plain ones, and the search that uses them equals looking at every shape."""

import time
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.errors import BudgetUnreachable
from foundry.spec.family import Shape, families
from foundry.spec.formats import FORMATS
from foundry.spec.ruler import Ruler
from foundry.spec.search import choices, shapes_within
from foundry.spec.stages import Axis
from foundry.spec.target import Budget

LLAMA = families()["llama"]
OPTIONAL = sorted(weight.name for weight in LLAMA.weights if weight.optional)
AXES: tuple[Axis, ...] = ("ffn", "hidden", "heads", "layers")


@st.composite
def _teachers(draw: st.DrawFn) -> Shape:
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([8, 16]))
    heads = kv_heads * group
    return Shape(
        layers=draw(st.integers(1, 9)), hidden=draw(st.sampled_from([heads * head_dim, 96, 160, 288])),
        ffn=draw(st.sampled_from([64, 100, 416, 768])), heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        vocab=draw(st.sampled_from([97, 4096])), tied=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def _budgets(draw: st.DrawFn, teacher: Shape) -> Budget:
    budget = Budget(
        target="t", format=draw(st.sampled_from(FORMATS)), context_tokens=draw(st.sampled_from([64, 512])), max_bytes=1
    )
    share = draw(st.floats(0.02, 1))
    if draw(st.booleans()):
        limit: dict[str, Any] = {"max_bytes": None, "max_params": int(share * LLAMA.parameter_count(teacher)) or 1}
    else:
        limit = {"max_bytes": int(share * budget.used_bytes(LLAMA, teacher)) or 1}
    return budget.model_copy(update=limit)


def _every_shape(teacher: Shape, axes: tuple[Axis, ...]) -> list[Shape]:
    grid = choices(teacher, axes)
    cuts = (dict(zip(grid, lengths, strict=True)) for lengths in product(*grid.values()))
    made = [teacher.model_copy(update=cut) for cut in cuts]
    return [shape for shape in made if teacher.hidden % teacher.heads or not shape.hidden % shape.heads]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), teacher=_teachers(), present=st.sets(st.sampled_from(OPTIONAL)))
def test_ruler_equals_budget_for_every_shape(data: st.DataObject, teacher: Shape, present: set[str]) -> None:
    budget = data.draw(_budgets(teacher))
    ruler = Ruler(LLAMA, teacher, budget, frozenset(present))
    shape = data.draw(st.sampled_from(_every_shape(teacher, AXES)))
    used = ruler.used(hidden=shape.hidden, heads=shape.heads, layers=shape.layers, ffn=shape.ffn)
    if budget.max_params:
        assert used == LLAMA.parameter_count(shape, frozenset(present))
    else:
        assert used == budget.used_bytes(LLAMA, shape, frozenset(present))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), teacher=_teachers(), axes=st.sets(st.sampled_from(AXES)))
def test_shapes_within_equals_looking_at_every_shape(data: st.DataObject, teacher: Shape, axes: set[Axis]) -> None:
    budget = data.draw(_budgets(teacher))
    allowed = tuple(sorted(axes))
    every = _every_shape(teacher, allowed)
    fitting = [shape for shape in every if budget.share(LLAMA, shape) <= 1]
    try:
        found = shapes_within(LLAMA, teacher, budget, allowed)
    except BudgetUnreachable as error:
        assert not fitting
        least = min(every, key=lambda shape: budget.share(LLAMA, shape))
        assert error.smallest_params == LLAMA.parameter_count(least)
        return
    assert _keys(found) == {
        key for key in _keys(fitting)
        if not any(other != key and all(o >= n for o, n in zip(other, key, strict=True)) for other in _keys(fitting))
    }  # fmt: skip


def _keys(shapes: list[Shape]) -> set[tuple[int, ...]]:
    return {(shape.hidden, shape.heads, shape.layers, shape.ffn) for shape in shapes}


def test_shapes_within_answers_soon_when_the_teacher_has_70_billion_parameters() -> None:
    teacher = Shape(layers=80, hidden=8192, ffn=28672, heads=64, kv_heads=8, head_dim=128, vocab=128256, tied=False)
    budget = Budget(target="t", format="gguf:q4_k_m", context_tokens=4096, max_bytes=3_000_000_000)
    began_at = time.monotonic()
    found = shapes_within(LLAMA, teacher, budget, AXES)
    assert len(found) > 10
    assert all(budget.share(LLAMA, shape) <= 1 for shape in found)
    with pytest.raises(BudgetUnreachable):
        shapes_within(LLAMA, teacher, budget.model_copy(update={"max_bytes": 1000}), AXES)
    assert time.monotonic() - began_at < 20  # looking at each of its half a million shapes took minutes
