import json
from pathlib import Path

import pytest
from rich.console import Console

from foundry.cli import render
from tests.unit.cli.conftest import Command

CONFIG = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
CONFIG_LENGTHS = {"hidden": 2048, "ffn": 8192}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def experts_config(tmp_path: Path) -> Path:
    """Qwen3 30B-A3B."""
    path = tmp_path / "experts.json"
    path.write_text(json.dumps({
        "model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "max_position_embeddings": 40960, "tie_word_embeddings": False,
    }))  # fmt: skip
    return path


@pytest.fixture(autouse=True)
def no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOUNDRY_URL", "FOUNDRY_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FOUNDRY_CONFIG", str(tmp_path / "config.toml"))


def test_version_is_the_packages(foundry: Command) -> None:
    result = foundry("--version")
    assert result.code == 0 and result.out.startswith("foundry 0.")


def test_targets_lists_the_devices_with_units(foundry: Command) -> None:
    shown = foundry("targets").out
    assert "smartphone" in shown and "2.75 GB" in shown and "76.8 GB/s" in shown and "\x1b" not in shown
    listed = {profile["name"]: profile for profile in json.loads(foundry("targets", "--json").out)}
    assert listed["smartphone"]["memory_bytes"] == 3_000_000_000


def test_plan_shows_shapes_that_fit_best_guess_first(foundry: Command, config: Path) -> None:
    result = foundry("plan", "--teacher", config, "--max-params", "700e6", "--json", "--top", "8")
    plan = json.loads(result.out)
    assert plan["teacher"]["parameters"] == 1_235_814_400  # what Llama 3.2 1B counts
    assert len(plan["candidates"]) == 8 <= plan["fitting_shapes"]
    for candidate in plan["candidates"]:
        assert 0.9 < candidate["budget_ratio"] <= 1
        assert candidate["parameters"] <= 700_000_000
        assert candidate["format_bytes"]["safetensors"] == 2 * candidate["parameters"]
        read = candidate["format_bytes"]["gguf:q4_k_m"] + candidate["kv_cache_bytes"]
        assert candidate["decode_tokens_per_s"]["smartphone"] == pytest.approx(76.8e9 / read)


def test_plan_says_in_words_what_the_numbers_are_worth(foundry: Command, config: Path) -> None:
    shown = foundry("plan", "--teacher", config, "--max-bytes", "600e6").out
    assert "1.24 B parameters" in shown and "KV cache at 2,048 tokens" in shown
    assert "This is a guess" in shown and "smartphone" in shown and "tokens/s" in shown


def test_plan_says_why_each_of_the_others_stands_behind_the_first(foundry: Command, config: Path) -> None:
    arguments = ("plan", "--teacher", config, "--max-params", "700e6", "--axes", "ffn,hidden")
    first, *others = json.loads(foundry(*arguments, "--json").out)["candidates"]
    shown = " ".join(foundry(*arguments).out.split())
    assert first["why"] == "" and len(others) == 4
    for place, other in enumerate(others, start=2):
        assert f"{place} {other['why']}" in shown
        assert f"balance {other['balance']:.3f} against {first['balance']:.3f}" in other["why"]
        for axis in ("hidden", "ffn"):
            more = 100 * (first["shape"][axis] - other["shape"][axis]) / CONFIG_LENGTHS[axis]
            assert f"{axis} {abs(more):.0f} % {'more' if more > 0 else 'less'}" in other["why"]


def test_plan_cuts_only_the_axes_that_it_is_given(foundry: Command, config: Path) -> None:
    result = foundry("plan", "--teacher", config, "--max-params", "700e6", "--axes", "layers, ffn", "--json")
    for candidate in json.loads(result.out)["candidates"]:
        shape = candidate["shape"]
        assert (shape["hidden"], shape["heads"], shape["kv_heads"]) == (2048, 32, 8)


def test_plan_counts_the_active_experts_of_a_token(foundry: Command, experts_config: Path) -> None:
    arguments = ("plan", "--teacher", experts_config, "--max-params", "20e9", "--axes", "experts,ffn")
    plan = json.loads(foundry(*arguments, "--json").out)
    for candidate in (plan["teacher"], *plan["candidates"]):
        assert candidate["bytes_read_per_token"] < 0.2 * candidate["format_bytes"]["gguf:q4_k_m"]
    assert plan["writes_gguf"] and 8 < plan["candidates"][0]["shape"]["experts"] < 128
    assert "8 of 128 experts a token" in " ".join(foundry(*arguments).out.split())


@pytest.mark.parametrize("teacher", ["config", "experts_config"])
def test_plan_fits_80_columns_without_cutting_a_number(
    foundry: Command, teacher: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "out", lambda: Console(width=80))
    path, limit = request.getfixturevalue(teacher), {"config": "600e6", "experts_config": "9e9"}[teacher]
    arguments = ("plan", "--teacher", path, "--max-bytes", limit, "--axes", "ffn,hidden,experts")
    shown = foundry(*arguments).out
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    for candidate in json.loads(foundry(*arguments, "--json").out)["candidates"]:
        shape = candidate["shape"]
        assert f"{shape['layers']}×{shape['hidden']}×{shape['ffn']}×{shape['heads']}/{shape['kv_heads']}" in shown


def test_plan_leaves_room_for_an_adapter(foundry: Command, config: Path) -> None:
    arguments = ("plan", "--teacher", config, "--max-bytes", "600e6", "--adapter-rank", "32")
    plan, plain = (json.loads(foundry(*given, "--json").out) for given in (arguments, arguments[:-2]))
    assert plan["teacher"]["budget_ratio"] > plain["teacher"]["budget_ratio"]
    assert plan["candidates"][0]["adapter_bytes"] > 10**7 and plan["candidates"][0]["budget_ratio"] <= 1
    for device, speed in plan["teacher"]["decode_tokens_per_s"].items():
        assert speed < plain["teacher"]["decode_tokens_per_s"][device]
    assert "a LoRA adapter of rank 32" in " ".join(foundry(*arguments).out.split())


def test_plan_says_when_the_teacher_fits_as_it_is(foundry: Command, config: Path) -> None:
    assert "fits as it is" in foundry("plan", "--teacher", config.parent, "--target", "laptop").out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--target", "toaster"), 1, "laptop, laptop-gpu"),
        (("--max-params", "1e6"), 1, "allow at least"),
        (("--max-params", "many"), 1, "/max_params"),
        (("--max-params", "1e9", "--format", "onnx"), 1, "gguf:q4_k_m"),
        (("--max-params", "7e8", "--axes", "ffn,width"), 2, "'width'; the axes are ffn, hidden,"),
        (("--max-params", "7e8", "--axes", ""), 2, "unknown axis ''"),
        ((), 2, "exactly one of"),
        (("--target", "laptop", "--max-params", "1e9"), 2, "exactly one of"),
    ],
    ids=[
        "unknown-target",
        "unreachable",
        "not-a-number",
        "unknown-format",
        "unknown-axis",
        "no-axis",
        "no-limit",
        "two-limits",
    ],
)
def test_plan_names_what_is_wrong_and_the_way_out(
    foundry: Command, config: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = foundry("plan", "--teacher", config, *arguments)
    assert result.code == code and says in " ".join(result.err.split()) and not result.out


def test_plan_asks_for_a_config_when_it_is_given_a_hub_id(foundry: Command) -> None:
    result = foundry("plan", "--teacher", "org/name", "--target", "laptop")
    assert result.code == 1 and "config.json" in result.err


@pytest.mark.parametrize("command", [["jobs"], ["watch", "job_1"], ["cancel", "job_1"], ["download", "var_1"]])
def test_command_says_how_to_start_a_service_when_none_is_known(foundry: Command, command: list[str]) -> None:
    result = foundry(*command)
    assert result.code == 3 and "foundry up" in result.err and not result.out


def test_wrong_option_ends_with_code_2(foundry: Command) -> None:
    assert foundry("jobs", "--limit", "none").code == 2


def test_missing_spec_field_is_named(foundry: Command, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("teacher: a/b\ndata: x\ntargets: [laptop]\ndistill: {tokens: -1}\n")
    result = foundry("run", spec, "-o", tmp_path / "out")
    assert result.code == 1 and "/distill/tokens" in result.err and not (tmp_path / "out").exists()
