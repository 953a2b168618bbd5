"""Every figure of a profile has a source, and what follows from the figures is arithmetic that can be done by hand."""

from typing import Any

import pytest

from foundry.errors import InvalidSpec
from foundry.spec.device import FIGURES, DeviceProfile, device_profiles
from foundry.spec.family import families
from foundry.spec.formats import bytes_read_per_token, parse_format
from foundry.spec.job import CustomTarget
from foundry.spec.record import parse
from foundry.spec.speed import Speed, decode_tokens_per_s, first_token_s
from foundry.spec.target import budget_of
from foundry.spec.weights import Shape

LLAMA = families()["llama"]
SHAPE = Shape(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, head_dim=64, vocab=128256, tied=True)


@pytest.mark.parametrize("profile", device_profiles().values(), ids=device_profiles())
def test_every_figure_of_a_profile_names_its_source(profile: DeviceProfile) -> None:
    assert {source.figure for source in profile.sources} == set(FIGURES)
    assert all(source.source and source.checked_on for source in profile.sources)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": []}, "exactly one source; look at compute_ops_per_s"),
        ({"runtime_overhead_bytes": 3_000_000_000}, "leaves nothing beside the runtime's own"),
        ({"minimum_tokens_per_s": 100}, "decode more slowly than minimum_tokens_per_s"),
        ({"format": "safetensors"}, "is none of formats"),
        ({"colour": "blue"}, "unknown field"),
    ],
    ids=["no sources", "no room", "too slow", "foreign format", "unknown field"],
)
def test_a_profile_that_does_not_hang_together_is_refused(change: dict[str, Any], says: str) -> None:
    table = device_profiles()["smartphone"].model_dump(mode="json")
    with pytest.raises(InvalidSpec, match=says):
        parse(DeviceProfile, table | change)


def test_a_specification_without_a_url_is_no_source() -> None:
    table = device_profiles()["workstation"].model_dump(mode="json")
    for source in table["sources"]:
        source["url"] = None
    with pytest.raises(InvalidSpec, match="cited by its url"):
        parse(DeviceProfile, table)


def test_decoding_reads_the_weights_and_a_full_cache_at_the_devices_bandwidth() -> None:
    read = bytes_read_per_token(LLAMA, SHAPE, parse_format("gguf:q4_k_m")) + SHAPE.kv_cache_bytes(4096)
    assert decode_tokens_per_s(device_profiles()["smartphone"].speed, "gguf:q4_k_m", 4096, LLAMA, SHAPE) == (
        pytest.approx(76.8e9 / read)
    )
    assert decode_tokens_per_s(Speed(), "gguf:q4_k_m", 4096, LLAMA, SHAPE) is None


def test_the_first_token_waits_for_two_operations_a_weight_or_for_the_weights_to_be_read() -> None:
    in_layers = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048) + 2048
    operations = 2 * in_layers * 512 + 2 * 16 * 32 * 64 * 512**2 + 2 * 128256 * 2048
    assert first_token_s(Speed(compute_ops_per_s=10**12), "gguf:f16", LLAMA, SHAPE) == pytest.approx(operations / 1e12)
    untied = SHAPE.model_copy(update={"tied": False})
    assert first_token_s(Speed(compute_ops_per_s=10**12), "gguf:f16", LLAMA, untied) == pytest.approx(operations / 1e12)
    slow_memory = Speed(compute_ops_per_s=10**15, memory_bandwidth_bytes_per_s=10**9)
    read = bytes_read_per_token(LLAMA, SHAPE, parse_format("gguf:f16"))
    assert first_token_s(slow_memory, "gguf:f16", LLAMA, SHAPE) == pytest.approx(read / 1e9)
    assert first_token_s(Speed(), "gguf:f16", LLAMA, SHAPE) is None


def test_the_budget_of_a_profile_leaves_the_runtime_its_own() -> None:
    budget = budget_of("single-board-computer", ("safetensors",))
    assert (budget.memory_bytes, budget.max_bytes) == (3_600_000_000, 3_350_000_000)
    assert budget.speed.minimum_tokens_per_s == 5


def test_a_custom_target_may_be_described_like_a_profile() -> None:
    given = {"name": "kiosk", "memory_bytes": "2e9", "memory_bandwidth_bytes_per_s": "40e9", "minimum_tokens_per_s": 8}
    budget = budget_of(parse(CustomTarget, given), ("gguf:q8_0",))
    assert (budget.memory_bytes, budget.max_bytes) == (2_000_000_000, 1_750_000_000)
    assert budget.decode_tokens_per_s(LLAMA, SHAPE) and budget.first_token_s(LLAMA, SHAPE) is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"memory_bytes": 200_000_000}, "leaves nothing for a model beside the runtime's own 250,000,000 bytes"),
        ({"memory_bytes": 10**9, "max_bytes": 10**9}, "exactly one"),
        ({"max_bytes": 10**9, "minimum_tokens_per_s": 5}, "only with memory_bandwidth_bytes_per_s"),
    ],
    ids=["below the runtime's overhead", "two limits", "minimum without bandwidth"],
)
def test_a_custom_target_that_cannot_be_is_refused_with_the_way_out(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        parse(CustomTarget, {"name": "kiosk", **fields})
