"""What an attached LoRA adapter takes of a budget: counted by hand, by the budget, by the estimate of a job."""

import pytest

from foundry.errors import InvalidSpec
from foundry.spec.adapter import adapter_bytes, adapter_values
from foundry.spec.estimate import estimate
from foundry.spec.family import families
from foundry.spec.formats import bytes_read_per_token, parse_format
from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.record import parse
from foundry.spec.target import Budget, budget_of, over_budget
from foundry.spec.variant import Artifact, device_bytes
from foundry.spec.weights import Shape

LLAMA = families()["llama"]
SHAPE = Shape(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, head_dim=64, vocab=128256, tied=True)
Q_O, K_V, FFN = 2 * (2048 + 2048), 2 * (2048 + 512), 3 * (2048 + 8192)
VALUES = 16 * 16 * (Q_O + K_V + FFN)
"""Of rank 16 in 16 layers."""


def budget(rank: int, **changes: object) -> Budget:
    target = CustomTarget(
        name="kiosk", max_bytes=10**9, memory_bandwidth_bytes_per_s=40 * 10**9, compute_ops_per_s=10**12
    )
    return budget_of(target, ("gguf:q4_k_m",), None, rank).model_copy(update=changes)


def test_an_adapter_has_two_factors_for_every_projection_of_a_layer_and_none_for_embedding_or_experts() -> None:
    assert adapter_values(LLAMA, SHAPE, 16) == VALUES
    assert 4 * VALUES < adapter_bytes(LLAMA, SHAPE, 16) < 4 * VALUES + 16 * 7 * 2 * 200
    experts = SHAPE.model_copy(update={"experts": 8, "experts_per_token": 2})
    assert adapter_values(families()["mixtral"], experts, 16) == 16 * 16 * (Q_O + K_V)


def test_a_budget_counts_the_adapter_in_bytes_and_in_both_speeds() -> None:
    plain, attached = budget(0), budget(16)
    beside = adapter_bytes(LLAMA, SHAPE, 16)
    assert attached.adapter_bytes(LLAMA, SHAPE) == beside and plain.adapter_bytes(LLAMA, SHAPE) == 0
    assert attached.used_bytes(LLAMA, SHAPE) == plain.used_bytes(LLAMA, SHAPE) + beside
    read = bytes_read_per_token(LLAMA, SHAPE, parse_format("gguf:q4_k_m")) + SHAPE.kv_cache_bytes(2048)
    assert attached.decode_tokens_per_s(LLAMA, SHAPE) == pytest.approx(40e9 / (read + beside))
    slower_s = (attached.first_token_s(LLAMA, SHAPE) or 0) - (plain.first_token_s(LLAMA, SHAPE) or 0)
    assert slower_s == pytest.approx(2 * VALUES * 512 / 1e12)


def test_onnx_runtime_takes_no_adapter_and_its_budget_counts_none() -> None:
    target = CustomTarget(name="kiosk", max_bytes=10**9, format="onnx:int4")
    assert budget_of(target, ("safetensors", "onnx:int4"), None, 16).adapter_rank == 0


def test_an_estimate_has_the_adapter_with_every_format_but_onnx_whatever_the_device_runs() -> None:
    formats = ("safetensors", "gguf:q4_k_m", "onnx:int4")
    for device in formats:
        target = {"name": "kiosk", "max_bytes": 10**10, "format": device}
        given = {"teacher": "t", "data": "d", "targets": (target,), "formats": formats}
        (found,) = estimate(parse(JobSpec, given | {"lora": {"rank": 16, "ship": "attached"}}), LLAMA, SHAPE).targets
        beside = adapter_bytes(LLAMA, SHAPE, 16)
        assert [form.adapter_bytes for form in found.formats] == [beside, beside, 0]


def test_a_job_whose_teacher_just_fits_is_cut_where_its_adapter_ships_beside_the_weights() -> None:
    room = budget(0).used_bytes(LLAMA, SHAPE)
    given = {"teacher": "t", "data": "d", "targets": ({"name": "kiosk", "max_bytes": room},)}
    (merged,) = estimate(parse(JobSpec, given | {"lora": {"rank": 16}}), LLAMA, SHAPE).targets
    assert merged.cuts_nothing and merged.adapter_bytes == 0
    (attached,) = estimate(parse(JobSpec, given | {"lora": {"rank": 16, "ship": "attached"}}), LLAMA, SHAPE).targets
    assert not attached.cuts_nothing and attached.used_bytes <= room
    assert attached.adapter_bytes == adapter_bytes(LLAMA, attached.shape, 16) > 10**7


@pytest.mark.parametrize(
    ("form", "loaded"), [("gguf:f16", 103), ("safetensors", 1010), ("onnx:int4", 50_500), ("gguf:q8_0", None)]
)
def test_a_device_loads_the_weights_of_its_format_with_the_adapter_of_its_runtime(
    form: str, loaded: int | None
) -> None:
    sizes = {
        ("kiosk-f16.gguf", "gguf:f16"): 100, ("adapter/adapter.gguf", None): 3,
        ("safetensors/model.safetensors", "safetensors"): 1000, ("safetensors/config.json", "safetensors"): 7,
        ("adapter/adapter_model.safetensors", None): 10, ("adapter/adapter_config.json", None): 7,
        ("onnx-int4/model.onnx", "onnx:int4"): 500, ("onnx-int4/model.onnx.data", "onnx:int4"): 50_000,
    }  # fmt: skip
    files = [Artifact(path=path, bytes=size, sha256="0", format=of) for (path, of), size in sizes.items()]
    assert device_bytes(files, form) == loaded
    assert loaded is not None or device_bytes(files, form, planned=60) == 63


def test_being_over_a_budget_names_the_adapter_where_there_is_one() -> None:
    for rank, says in ((0, "file and KV cache"), (16, "file, adapter and KV cache")):
        small = budget(rank, max_bytes=1)
        (reason,) = over_budget(small, parameters=1, shape=SHAPE, device_file_bytes=100)
        assert reason.startswith(f"{says} at 2,048 tokens take")


def test_an_adapter_that_no_format_takes_is_refused_with_the_way_out() -> None:
    given = {"teacher": "t", "data": "d", "targets": ("laptop",), "formats": ("onnx:int4", "onnx:fp32")}
    with pytest.raises(InvalidSpec, match=r"no format takes an adapter: .*; add safetensors or a GGUF to formats"):
        parse(JobSpec, given | {"lora": {"ship": "attached"}})
    assert parse(JobSpec, given | {"lora": {}}).attached_rank == 0
