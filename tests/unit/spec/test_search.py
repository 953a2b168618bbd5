"""The arithmetic of shapes and budgets, on the configs of published models."""

import pytest

from foundry.errors import BudgetUnreachable
from foundry.spec.family import Shape, families
from foundry.spec.formats import FORMATS, bytes_of, gguf_type_of, parse_format, weight_bytes
from foundry.spec.search import balance, choices, shapes_within
from foundry.spec.target import Budget

LLAMA = families()["llama"]
NEMO_12B = Shape(layers=40, hidden=5120, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=131072, tied=False)
SMALL = Shape(layers=8, hidden=256, ffn=768, heads=8, kv_heads=4, head_dim=32, vocab=4096, tied=True)


def _budget(**limit: int) -> Budget:
    return Budget(target="t", format="gguf:q4_k_m", context_tokens=512, **limit)


def test_parameter_count_equals_published_figure_when_llama_3_1_8b() -> None:
    llama = Shape(layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256, tied=False)
    assert LLAMA.parameter_count(llama) == 8_030_261_248


def test_parameter_count_equals_published_figure_when_mistral_nemo_12b() -> None:
    assert LLAMA.parameter_count(NEMO_12B) == 12_247_782_400


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "shape", [SMALL, SMALL.model_copy(update={"hidden": 192, "ffn": 416, "tied": False})], ids=["even", "odd"]
)
def test_weight_bytes_equals_sum_over_tensors(shape: Shape, form: str) -> None:
    parsed = parse_format(form)
    total = 0
    for tensor in LLAMA.tensors(shape):
        values = tensor.size[0] * (tensor.size[1] if len(tensor.size) == 2 else 1)
        kind = "F16" if parsed.container == "safetensors" else gguf_type_of(tensor, shape, parsed.quantisation)
        total += bytes_of(values, kind)
    assert weight_bytes(LLAMA, shape, parsed) == total


def test_shapes_within_gives_teacher_alone_when_it_fits() -> None:
    assert shapes_within(LLAMA, SMALL, _budget(max_params=8_000_000), ("ffn",)) == [SMALL]


@pytest.mark.parametrize("limit", [{"max_params": 3_000_000}, {"max_bytes": 4_000_000}], ids=["params", "bytes"])
def test_shapes_within_fit_and_are_not_dominated(limit: dict[str, int]) -> None:
    budget = _budget(**limit)
    found = shapes_within(LLAMA, SMALL, budget, ("ffn", "hidden", "heads", "layers"))
    assert len(found) > 3
    keys = {(s.hidden, s.ffn, s.heads, s.layers) for s in found}
    for shape in found:
        assert budget.share(LLAMA, shape) <= 1
        assert shape.hidden % shape.heads == 0 and shape.heads % shape.kv_heads == 0
        key = (shape.hidden, shape.ffn, shape.heads, shape.layers)
        assert not any(o != key and all(a >= b for a, b in zip(o, key, strict=True)) for o in keys)


def test_shapes_within_touches_only_the_axes_that_may_be_cut() -> None:
    for shape in shapes_within(LLAMA, SMALL, _budget(max_params=5_000_000), ("ffn",)):
        assert shape.model_copy(update={"ffn": SMALL.ffn}) == SMALL


def test_shapes_within_names_smallest_size_when_unreachable() -> None:
    with pytest.raises(BudgetUnreachable) as caught:
        shapes_within(LLAMA, SMALL, _budget(max_params=1000), ("ffn", "hidden"))
    smallest = caught.value.smallest_params
    assert f"{smallest:,}" in caught.value.message
    assert shapes_within(LLAMA, SMALL, _budget(max_params=smallest), ("ffn", "hidden"))


def test_search_finds_minitron_width_when_nemo_may_lose_ffn_and_hidden() -> None:
    """NVIDIA took hidden 4096 and ffn 11520 for 8.4 billion parameters: the guess finds the same."""
    grid = choices(NEMO_12B, ("ffn", "hidden"))
    assert 4096 in grid["hidden"] and 11520 in grid["ffn"]
    found = shapes_within(LLAMA, NEMO_12B, _budget(max_params=8_420_000_000), ("ffn", "hidden"))
    leader = min(found, key=lambda s: balance(NEMO_12B, s))
    assert (leader.hidden, leader.ffn) == (4096, 11520)
