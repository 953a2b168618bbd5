"""The arithmetic of shapes and budgets, on the configs of published models."""

import math
from typing import Any

import pytest

from foundry.errors import BudgetUnreachable
from foundry.spec.estimate import estimate
from foundry.spec.family import Family, families
from foundry.spec.formats import (
    FORMATS,
    GgufType,
    bytes_of,
    bytes_read_per_token,
    gguf_type,
    gguf_type_of,
    parse_format,
    tensor_bytes,
    weight_bytes,
)
from foundry.spec.job import JobSpec
from foundry.spec.record import parse
from foundry.spec.search import balance, choices, shapes_within, shares_cut
from foundry.spec.stages import Axis, Prune
from foundry.spec.target import Budget
from foundry.spec.weights import Role, Shape

LLAMA, GPT2, QWEN3_MOE = families()["llama"], families()["gpt2"], families()["qwen3_moe"]
LLAMA_8B = Shape(layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256, tied=False)
GEMMA_7B = Shape(layers=28, hidden=3072, ffn=24576, heads=16, kv_heads=16, head_dim=256, vocab=256000, tied=True)
GPT2_SMALL = Shape(
    layers=12, hidden=768, ffn=3072, heads=12, kv_heads=12, head_dim=64, vocab=50257, tied=True, positions=1024
)
QWEN3_30B = Shape(
    layers=48, hidden=2048, ffn=768, heads=32, kv_heads=4, head_dim=128, vocab=151936, tied=False, experts=128,
    experts_per_token=8,
)  # fmt: skip
NEMO_12B = Shape(layers=40, hidden=5120, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=131072, tied=False)
SMALL = Shape(layers=8, hidden=256, ffn=768, heads=8, kv_heads=4, head_dim=32, vocab=4096, tied=True)


def _budget(**limit: int) -> Budget:
    return Budget(target="t", format="gguf:q4_k_m", context_tokens=512, **limit)


def test_parameter_count_equals_published_figure_when_llama_3_1_8b() -> None:
    assert LLAMA.parameter_count(LLAMA_8B) == 8_030_261_248


def test_parameter_count_equals_published_figure_when_mistral_nemo_12b() -> None:
    assert LLAMA.parameter_count(NEMO_12B) == 12_247_782_400


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "shape", [SMALL, SMALL.model_copy(update={"hidden": 192, "ffn": 416, "tied": False})], ids=["even", "odd"]
)
@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_weight_bytes_equals_sum_over_tensors(family: Family, shape: Shape, form: str) -> None:
    shape = _as_member(family, shape)
    parsed = parse_format(form)
    total = 0
    for tensor in family.tensors(shape):
        boosted = tensor.layer in _boosted(shape.layers)
        total += tensor_bytes(tensor.weight, tensor.size, boosted, shape, parsed)
        if parsed.container == "gguf":
            kind = gguf_type_of(tensor, shape, parsed.quantisation)
            assert tensor_bytes(tensor.weight, tensor.size, boosted, shape, parsed) == bytes_of(
                math.prod(tensor.size), kind
            )
    assert weight_bytes(family, shape, parsed) == total


def _boosted(layers: int) -> list[int]:
    """The layers that get more bits in a mix of k-quants."""
    eighth = layers // 8
    return [n for n in range(layers) if n < eighth or n >= 7 * layers // 8 or (n - eighth) % 3 == 2]


def _as_member(family: Family, shape: Shape) -> Shape:
    """The shape with what this family has beside the common axes."""
    more: dict[str, Any] = {"positions": 64 if "positions" in family.config else 0}
    if "experts" in family.config:
        more |= {"experts": 6, "experts_per_token": 2}
    if family.heads_fill_hidden:
        more |= {"hidden": shape.heads * shape.head_dim, "kv_heads": shape.heads}
    return shape.model_copy(update=more)


def _type(family: Family, role: Role, size: tuple[int, ...], quantisation: str, *, boosted: bool = False) -> GgufType:
    return gguf_type(family.row(role), size, boosted, SMALL, quantisation)


def test_gguf_types_are_those_of_llama_cpp() -> None:
    assert _type(LLAMA, "down", (512, 512), "q4_k_m") == "Q4_K"
    assert _type(LLAMA, "down", (512, 512), "q4_k_m", boosted=True) == "Q6_K"
    assert _type(LLAMA, "q", (512, 512), "q4_k_m", boosted=True) == "Q4_K"
    assert _type(GPT2, "qkv", (512, 1536), "q4_k_m") == "Q5_K"
    assert _type(GPT2, "qkv", (512, 1536), "q5_k_m") == "Q6_K"
    assert _type(GPT2, "positions", (64, 512), "q4_k_m") == "F32"
    assert _type(QWEN3_MOE, "router", (128, 512), "f16") == "F32"


def test_gguf_type_falls_back_by_the_length_of_the_input() -> None:
    """GPT-2 stores [in, out], a GGUF row holds the inputs of one output."""
    assert _type(GPT2, "up", (192, 512), "q4_k_m") == "Q5_0"
    assert _type(GPT2, "up", (512, 192), "q4_k_m") == "Q4_K"
    assert _type(GPT2, "down", (416, 256), "q4_k_m") == "Q5_0"
    assert _type(LLAMA, "up", (192, 512), "q4_k_m") == "Q4_K"


def test_token_reads_the_active_experts_and_one_row_of_the_embedding() -> None:
    form = parse_format("safetensors")
    # Qwen names it 30B-A3B: of 30.5 billion parameters 3.3 are active, of which 0.3 are the embedding
    assert bytes_read_per_token(QWEN3_MOE, QWEN3_30B, form) / 2 == pytest.approx(3.04e9, rel=0.01)
    embedding = 2 * LLAMA_8B.vocab * LLAMA_8B.hidden
    assert bytes_read_per_token(LLAMA, LLAMA_8B, form) == weight_bytes(LLAMA, LLAMA_8B, form) - embedding
    assert bytes_read_per_token(LLAMA, SMALL, form) == weight_bytes(LLAMA, SMALL, form)
    positions = 2 * GPT2_SMALL.positions * GPT2_SMALL.hidden
    assert bytes_read_per_token(GPT2, GPT2_SMALL, form) == weight_bytes(GPT2, GPT2_SMALL, form) - positions


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


def _leaders(family: Family, teacher: Shape, max_params: float, axes: tuple[Axis, ...]) -> list[Shape]:
    """The five best guesses."""
    found = shapes_within(family, teacher, _budget(max_params=int(max_params)), axes)
    return sorted(found, key=lambda s: balance(teacher, s))[:5]


def test_search_finds_minitron_width_when_nemo_may_lose_ffn_and_hidden() -> None:
    """NVIDIA took hidden 4096 and ffn 11520 for 8.4 billion parameters: the guess finds the same."""
    grid = choices(NEMO_12B, ("ffn", "hidden"))
    assert 4096 in grid["hidden"] and 11520 in grid["ffn"]
    leader = _leaders(families()["mistral"], NEMO_12B, 8.42e9, ("ffn", "hidden"))[0]
    assert (leader.hidden, leader.ffn) == (4096, 11520)


@pytest.mark.parametrize("name", ["mistral", "llama"])
def test_search_finds_minitron_width_when_nemo_may_lose_anything(name: str) -> None:
    leader = _leaders(families()[name], NEMO_12B, 8.42e9, Prune().axes)[0]
    assert leader == NEMO_12B.model_copy(update={"hidden": 4096, "ffn": 11520})


def test_search_has_minitron_shapes_among_its_first_when_llama_goes_to_4_billion() -> None:
    width = LLAMA_8B.model_copy(update={"hidden": 3072, "ffn": 9216})
    assert width in _leaders(LLAMA, LLAMA_8B, 4.52e9, ("ffn", "hidden"))
    assert width in _leaders(LLAMA, LLAMA_8B, 4.52e9, Prune().axes)
    depth = LLAMA_8B.model_copy(update={"layers": 16})
    assert _leaders(LLAMA, LLAMA_8B, 4.55e9, ("layers",)) == [depth]


def test_search_cuts_gemma_in_width_before_it_drops_layers_or_heads() -> None:
    leader = _leaders(families()["gemma"], GEMMA_7B, 5e9, Prune().axes)[0]
    assert leader.model_copy(update={"hidden": 3072, "ffn": 24576}) == GEMMA_7B
    assert 0.6 < leader.hidden / 3072 < 0.9 and 0.6 < leader.ffn / 24576 < 0.9


def test_experts_go_before_layers_and_heads() -> None:
    leader = _leaders(QWEN3_MOE, QWEN3_30B, 20e9, Prune().axes)[0]
    assert 64 <= leader.experts < 128 and leader.experts % 8 == 0
    assert (leader.layers, leader.heads, leader.kv_heads, leader.experts_per_token) == (48, 32, 4, 8)


@pytest.mark.parametrize(
    ("experts", "per_token", "expected"),
    [(8, 2, [8, 7, 6, 5, 4, 3, 2]), (8, 4, [8, 7, 6, 5, 4]), (60, 4, [60, 57, 54]), (0, 0, [0])],
)
def test_experts_stay_as_many_as_a_token_takes(experts: int, per_token: int, expected: list[int]) -> None:
    teacher = SMALL.model_copy(update={"experts": experts, "experts_per_token": per_token})
    assert choices(teacher, ("experts",))["experts"][: len(expected)] == expected
    assert choices(teacher, ("experts",))["experts"][-1] >= experts / 4
    assert choices(teacher, ("ffn",))["experts"] == [experts]


@pytest.mark.parametrize(
    ("axes", "pairs"),
    [
        (("heads",), {(8, 4), (4, 4)}),
        (("kv_heads",), {(8, 4), (6, 3), (4, 2), (2, 1)}),
        (("heads", "kv_heads"), {(8, 4), (6, 3), (4, 2), (2, 1), (4, 4), (3, 3), (2, 2)}),
    ],
    ids=["inside-groups", "whole-groups", "both"],
)
def test_heads_are_cut_inside_their_groups_and_kv_heads_with_them(
    axes: tuple[Axis, ...], pairs: set[tuple[int, int]]
) -> None:
    """With budgets for every pair: each comes out of some search, and no other does."""
    found: set[tuple[int, int]] = {(8, 4)}
    family = LLAMA.model_copy(update={"hidden_multiple_of_heads": False})
    for heads, kv_heads in pairs:
        size = family.parameter_count(SMALL.model_copy(update={"heads": heads, "kv_heads": kv_heads}))
        found |= {(s.heads, s.kv_heads) for s in shapes_within(family, SMALL, _budget(max_params=size), axes)}
    assert found == pairs


@pytest.mark.parametrize("axes", [("heads",), ("kv_heads",)])
def test_multi_head_attention_loses_heads_and_kv_heads_in_step(axes: tuple[Axis, ...]) -> None:
    family = families()["gemma"]
    (found,) = shapes_within(family, GEMMA_7B, _budget(max_params=8_000_000_000), axes)
    assert found.heads == found.kv_heads < 16
    assert shares_cut(GEMMA_7B, found) == {"ffn": 0, "hidden": 0, "layers": 0, "heads": 1 - found.heads / 16}


def test_heads_and_hidden_go_in_step_when_heads_fill_hidden() -> None:
    found = shapes_within(GPT2, GPT2_SMALL, _budget(max_params=60_000_000), ("hidden", "heads", "ffn"))
    assert {s.hidden for s in found} > {512, 576}
    assert all(s.hidden == s.heads * 64 and s.kv_heads == s.heads and s.head_dim == 64 for s in found)


@pytest.mark.parametrize("axis", ["hidden", "heads"])
def test_neither_hidden_nor_heads_goes_alone_when_heads_fill_hidden(axis: Axis) -> None:
    (found,) = shapes_within(GPT2, GPT2_SMALL, _budget(max_params=100_000_000), (axis, "ffn"))
    assert found.model_copy(update={"ffn": 3072}) == GPT2_SMALL
    with pytest.raises(BudgetUnreachable, match="hidden and heads be cut together"):
        shapes_within(GPT2, GPT2_SMALL, _budget(max_params=60_000_000), (axis, "ffn"))


PHI3_MINI = Shape(
    layers=32, hidden=3072, ffn=8192, heads=32, kv_heads=32, head_dim=96, vocab=32064, tied=False
)  # fmt: skip


@pytest.mark.parametrize("name", ["phi3", "starcoder2"])
def test_a_device_of_llamacpp_gets_shapes_that_it_runs_where_it_takes_hidden_over_heads_for_head_dim(name: str) -> None:
    def found(form: str) -> list[Shape]:
        budget = _budget(max_params=1_500_000_000).model_copy(update={"format": form})
        return shapes_within(families()[name], PHI3_MINI, budget, ("hidden", "heads", "ffn"))

    assert all(shape.hidden == shape.heads * shape.head_dim for shape in found("gguf:q4_k_m"))
    assert any(shape.hidden != shape.heads * shape.head_dim for shape in found("safetensors"))


@pytest.mark.parametrize(("name", "cuts"), [("gemma3", False), ("smollm3", False), ("qwen3", True)])
def test_a_device_of_llamacpp_loses_no_layers_where_their_kind_goes_by_their_number(name: str, cuts: bool) -> None:
    shape = PHI3_MINI.model_copy(update={"kv_heads": 8})
    budget = _budget(max_params=1_500_000_000).model_copy(update={"format": "gguf:q4_k_m"})
    found = shapes_within(families()[name], shape, budget, Prune().axes)
    assert any(one.layers < 32 for one in found) == cuts
    safetensors = budget.model_copy(update={"format": "safetensors"})
    assert any(one.layers < 32 for one in shapes_within(families()[name], shape, safetensors, Prune().axes))


def test_a_budget_that_only_fewer_layers_would_meet_says_why_none_was_cut() -> None:
    budget = _budget(max_params=400_000_000).model_copy(update={"format": "gguf:q4_k_m"})
    with pytest.raises(BudgetUnreachable, match=r"llama\.cpp needs every layer of gemma3, so none was cut"):
        shapes_within(families()["gemma3"], PHI3_MINI.model_copy(update={"tied": True}), budget, ("ffn", "layers"))


def test_a_job_that_writes_no_gguf_may_lose_layers_for_a_profile_of_llamacpp() -> None:
    given = {"teacher": "t", "data": "d", "targets": ("smartphone-mid",), "prune": {"axes": ("ffn", "layers")}}
    spec = parse(JobSpec, given | {"formats": ("safetensors",)})
    (found,) = estimate(spec, families()["gemma3"], PHI3_MINI).targets
    assert found.budget.format.startswith("gguf") and found.shape.layers < PHI3_MINI.layers
    with pytest.raises(BudgetUnreachable, match="a target of your own that has format: safetensors"):
        estimate(parse(JobSpec, given), families()["gemma3"], PHI3_MINI)


def test_balance_is_nothing_for_the_teacher_and_counts_depth_above_width() -> None:
    def cut(**lengths: int) -> float:
        return balance(QWEN3_30B, QWEN3_30B.model_copy(update=lengths))

    assert cut() == 0
    assert cut(ffn=384) == cut(experts=64) < cut(hidden=1024) < cut(heads=16) < cut(layers=24)
    assert cut(heads=16) < cut(heads=16, kv_heads=2)  # whole groups: keys and values are lost with the queries
