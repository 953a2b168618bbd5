"""Every family table against transformers' own classes, llama.cpp's list of tensors and published models."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES
from transformers import AutoConfig, PretrainedConfig

from foundry.errors import DamagedCheckpoint, InvalidSpec, UnsupportedFamily
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.family import Family, families, family_of
from foundry.spec.record import parse
from tests.families import FAMILY_NAMES, TIED_ONLY, genuine, save_genuine

WRITTEN_BY_CODE = {"model_type", "tie_word_embeddings", "rope_parameters", "rope_scaling", "rope_theta"}
DROPPED = {"transformers_version", "_sliding_window_pattern", "ignore_keys_at_rope_validation"}
"""What a student's config does without: whoever saves it next writes them anew."""
OPTIONAL_PARTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("gemma", {"attention_bias": True}),
    ("gemma2", {"attention_bias": True}),
    ("gemma3", {"attention_bias": True}),
    ("olmo2", {"attention_bias": True}),
    ("olmo3", {"attention_bias": True}),
    ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3_moe", {"attention_bias": True}),
    ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    ("jais2", {"attention_bias": False, "mlp_bias": False}),
    ("stablelm", {"use_qkv_bias": True}),
    ("helium", {"attention_bias": True, "mlp_bias": True}),
    ("olmoe", {"attention_bias": True}),
    ("starcoder2", {"use_bias": False}),
    ("gpt_neox", {"attention_bias": False}),
)
"""Families with settings that add or remove biases, and the setting that is not the default."""

COMMON = {"initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True}
"""Of no interest here, and different from every default in one place or another."""


def _hub(
    model_type: str, layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        **COMMON, "model_type": model_type, "num_hidden_layers": layers, "hidden_size": hidden,
        "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        **more,
    }  # fmt: skip


LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LONG_ROPE = {"type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.0] * 48}
YARN = {
    "rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama 3.1 8B": (
        _hub("llama", 32, 4096, 14336, 32, 8, 128256, rope_theta=5e5, rope_scaling=LLAMA3_ROPE,
             max_position_embeddings=131072, tie_word_embeddings=False),
        8_030_261_248,
    ),
    "Mistral NeMo 12B": (
        _hub("mistral", 40, 5120, 14336, 32, 8, 131072, head_dim=128, rope_theta=1e6, sliding_window=None,
             max_position_embeddings=131072, tie_word_embeddings=False),
        12_247_782_400,
    ),
    "Qwen 2.5 0.5B": (
        _hub("qwen2", 24, 896, 4864, 14, 2, 151936, rope_theta=1e6, sliding_window=32768, use_sliding_window=False,
             max_window_layers=24, use_mrope=False, tie_word_embeddings=True),
        494_032_768,
    ),
    "Qwen 3 0.6B": (
        _hub("qwen3", 28, 1024, 3072, 16, 8, 151936, head_dim=128, rope_theta=1e6, rope_scaling=None,
             sliding_window=None, use_sliding_window=False, max_window_layers=28, tie_word_embeddings=True),
        596_049_920,
    ),
    "Gemma 7B": (
        _hub("gemma", 28, 3072, 24576, 16, 16, 256000, head_dim=256, rope_theta=1e4, hidden_act="gelu_pytorch_tanh"),
        8_537_680_896,
    ),
    "Gemma 2 2B": (
        _hub("gemma2", 26, 2304, 9216, 8, 4, 256000, head_dim=256, rope_theta=1e4, query_pre_attn_scalar=256,
             sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        2_614_341_888,
    ),
    "Gemma 3 1B": (
        _hub("gemma3_text", 26, 1152, 6912, 4, 1, 262144, head_dim=256, rope_theta=1000000, rope_scaling=None,
             rope_local_base_freq=10000, sliding_window=512, sliding_window_pattern=6, query_pre_attn_scalar=256),
        999_885_952,
    ),
    "Phi-3 mini": (
        _hub("phi3", 32, 3072, 8192, 32, 32, 32064, rope_theta=1e4, rope_scaling=None, sliding_window=2047,
             pad_token_id=32000, tie_word_embeddings=False),
        3_821_079_552,
    ),
    "Phi-4 mini": (
        _hub("phi3", 32, 3072, 8192, 24, 8, 200064, rope_theta=1e4, rope_scaling=LONG_ROPE, sliding_window=262144,
             partial_rotary_factor=0.75, max_position_embeddings=131072, original_max_position_embeddings=4096,
             tie_word_embeddings=True),
        3_836_021_760,
    ),
    "OLMo 2 1B": (
        _hub("olmo2", 16, 2048, 8192, 16, 16, 100352, rope_theta=5e5, rope_scaling=None, tie_word_embeddings=False),
        1_484_916_736,
    ),
    "OLMo 3 7B": (
        _hub("olmo3", 32, 4096, 11008, 32, 32, 100278, rope_theta=5e5, rope_scaling=YARN, sliding_window=4096,
             max_position_embeddings=65536, tie_word_embeddings=False,
             layer_types=[*["sliding_attention"] * 3, "full_attention"] * 8),
        7_298_011_136,
    ),
    "SmolLM3 3B": (
        _hub("smollm3", 36, 2048, 11008, 16, 4, 128256, rope_theta=5e6, rope_scaling=None, sliding_window=None,
             use_sliding_window=False, no_rope_layers=[1, 1, 1, 0] * 9, no_rope_layer_interval=4, mlp_bias=False),
        3_075_098_624,
    ),
    "Granite 3.1 2B": (
        _hub("granite", 40, 2048, 8192, 32, 8, 49155, rope_theta=5e6, rope_scaling=None, attention_multiplier=0.015625,
             embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, tie_word_embeddings=True),
        2_533_531_648,
    ),
    "Minitron 4B": (
        _hub("nemotron", 32, 3072, 9216, 24, 8, 256000, head_dim=128, rope_theta=1e4, partial_rotary_factor=0.5,
             hidden_act="relu2", norm_eps=1e-5, tie_word_embeddings=False),
        4_190_509_056,
    ),
    "StableLM 3B 4E1T": (
        _hub("stablelm", 32, 2560, 6912, 32, 32, 50304, rope_theta=1e4, partial_rotary_factor=0.25,
             tie_word_embeddings=False),
        2_795_443_200,
    ),
    "OLMoE 1B-7B": (
        _hub("olmoe", 16, 2048, 1024, 16, 16, 50304, rope_theta=1e4, rope_scaling=None, clip_qkv=None, num_experts=64,
             num_experts_per_tok=8, norm_topk_prob=False, tie_word_embeddings=False),
        6_919_161_856,
    ),
    "StarCoder2 3B": (
        _hub("starcoder2", 30, 3072, 12288, 24, 2, 49152, rope_theta=999999.4420358813, use_bias=True,
             sliding_window=4096),
        3_030_371_328,
    ),
    "GPT-2": (
        {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "n_ctx": 1024,
         "vocab_size": 50257},
        124_439_808,
    ),
    "Pythia 160M": (
        {"model_type": "gpt_neox", "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072,
         "num_attention_heads": 12, "vocab_size": 50304, "rotary_pct": 0.25, "rotary_emb_base": 10000,
         "tie_word_embeddings": False},
        162_322_944,
    ),
    "Mixtral 8x7B": (
        _hub("mixtral", 32, 4096, 14336, 32, 8, 32000, rope_theta=1e6, sliding_window=None, num_local_experts=8,
             num_experts_per_tok=2, tie_word_embeddings=False),
        46_702_792_704,
    ),
    "Qwen 3 30B-A3B": (
        _hub("qwen3_moe", 48, 2048, 6144, 32, 4, 151936, head_dim=128, rope_theta=1e6, rope_scaling=None,
             moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
             decoder_sparse_step=1, mlp_only_layers=[], sliding_window=None, tie_word_embeddings=False),
        30_532_122_624,
    ),
}  # fmt: skip
"""config.json of published models, cut to what decides sizes and positions, with their parameter counts."""
BIASED = ("StarCoder2 3B", "Pythia 160M")
"""Published models that have every optional row; the others have none."""


def _without_aliases(config: dict[str, Any]) -> dict[str, Any]:
    """A config class's own view of itself without the second names that it keeps but never reads."""
    told = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version", "dtype")}
    if config["model_type"] == "gpt_neox":
        told.pop("rope_theta", None)  # its class reads rope_parameters and rotary_emb_base
    if "rope_type" in (rope := dict(told.get("rope_parameters") or {})):
        rope.pop("type", None)
        told["rope_parameters"] = rope
    return told


def _view(config: dict[str, Any]) -> dict[str, Any]:
    made: PretrainedConfig = AutoConfig.for_model(**json.loads(json.dumps(config)))
    return _without_aliases(made.to_dict())


def _every_key(family: Family) -> set[str]:
    return {*family.config_keep, *family.config_lists, *family.config.values(), *family.aliases.values()}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_table_names_every_saved_tensor(name: str, tied: bool, tmp_path: Path) -> None:
    if name in TIED_ONLY and not tied:
        pytest.skip("always tied")
    model = save_genuine(tmp_path, name, tied=tied, layers=3)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.family.name == name
    assert checkpoint.shape.tied == tied
    assert checkpoint.shape.layers == 3
    assert checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present) == model.num_parameters()


@pytest.mark.parametrize(("name", "settings"), OPTIONAL_PARTS, ids=lambda v: v if isinstance(v, str) else "")
def test_optional_rows_are_found(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = save_genuine(tmp_path, name, **settings)
    checkpoint = open_checkpoint(tmp_path)
    optional = {w.name for w in checkpoint.family.weights if w.optional}
    assert checkpoint.present == (optional if all(settings.values()) else set())
    assert checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present) == model.num_parameters()


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_an_absent_tie_means_what_the_class_means(name: str) -> None:
    family = families()[name]
    assert family.tied_by_default == AutoConfig.for_model(family.model_types[0]).tie_word_embeddings


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_no_key_of_a_saved_config_is_unknown(name: str, tmp_path: Path) -> None:
    save_genuine(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert set(config) - _every_key(families()[name]) <= WRITTEN_BY_CODE | DROPPED


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_rewritten_config_means_the_same(name: str, tmp_path: Path) -> None:
    model = save_genuine(tmp_path, name, layers=4)
    checkpoint = open_checkpoint(tmp_path)
    rewritten = checkpoint.family.config_for(checkpoint.config, checkpoint.shape)
    assert _view(rewritten) == _without_aliases(model.config.to_dict())


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_rewritten_config_has_the_new_sizes(name: str, tmp_path: Path) -> None:
    save_genuine(tmp_path, name, layers=4)
    checkpoint = open_checkpoint(tmp_path)
    family = checkpoint.family
    smaller: dict[str, Any] = {"layers": 2, "ffn": 24, "vocab": 300}
    if checkpoint.shape.experts:
        smaller |= {"experts": 3, "experts_per_token": 1}
    if family.heads_fill_hidden:
        smaller |= {"hidden": 24, "heads": 3, "kv_heads": 3}
    else:
        smaller |= {"hidden": 20, "heads": 2, "kv_heads": 1}
    shape = checkpoint.shape.model_copy(update=smaller)
    rewritten = family.config_for(checkpoint.config, shape, layers=(0, 3))
    made = AutoConfig.for_model(**rewritten)
    assert family.shape_of(rewritten) == shape
    assert family.shape_of(made.to_dict()) == shape
    for key in family.config_lists:
        assert getattr(made, key) == [checkpoint.config[key][0], checkpoint.config[key][3]]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_table_has_the_roles_that_pruning_needs(name: str) -> None:
    roles = {weight.role for weight in families()[name].weights}
    assert roles >= {"embedding", "final_norm", "o", "down"}
    assert roles >= {"q", "k", "v"} or "qkv" in roles
    assert "up" in roles or "gate_up" in roles
    assert ("router" in roles) == any(weight.per_expert for weight in families()[name].weights)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_llama_cpp_knows_every_gguf_name(name: str) -> None:
    family = families()[name]
    if not family.gguf_architecture:
        pytest.skip("llama.cpp has no such architecture")
    by_name: dict[str, MODEL_ARCH] = {text: arch for arch, text in MODEL_ARCH_NAMES.items()}
    tensors = MODEL_TENSORS[by_name[family.gguf_architecture]]
    known = {TENSOR_NAMES[tensor].replace("{bid}", "{layer}") for tensor in tensors}
    for weight in family.weights:
        if weight.gguf:
            assert weight.gguf.removesuffix(".weight").removesuffix(".bias") in known
            assert weight.gguf.endswith(".bias") == weight.is_bias
        else:
            assert weight.role == "head"
            assert "output" not in known


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_gguf_norms_carry_the_offset(name: str) -> None:
    family = families()[name]
    for weight in family.weights:
        norm = weight.role.endswith("norm") and not weight.is_bias
        assert weight.gguf_add == (family.norm_offset if norm else 0)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_head_dim_is_honoured_where_the_table_says_so(name: str) -> None:
    family = families()[name]
    assert family.heads_fill_hidden == ("head_dim" not in family.config)
    if family.heads_fill_hidden:
        return
    config = genuine(name, head_dim=4).config.to_dict()
    assert family.shape_of(config).head_dim == 4


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_class_refuses_hidden_that_heads_do_not_divide_where_the_table_says_so(name: str) -> None:
    family = families()[name]
    if family.heads_fill_hidden:
        return
    try:
        genuine(name, hidden=30)
        refused = False
    except Exception as error:
        assert "not a multiple" in str(error)
        refused = True
    checked = hasattr(genuine(name).config, "validate_architecture")  # transformers 5.3 accepts every hidden
    assert refused == (family.hidden_multiple_of_heads and checked)


def test_a_shape_that_the_class_refuses_is_carried_by_another_family() -> None:
    family = families()["llama"]
    config = genuine("llama", hidden=32, heads=4).config.to_dict()
    shape = family.shape_of(config)
    narrow = shape.model_copy(update={"hidden": 30})
    assert family.config_for(config, shape)["model_type"] == "llama"
    carried = family.config_for(config, narrow)
    assert (carried["model_type"], carried["hidden_size"], carried["sliding_window"]) == ("mistral", 30, None)
    assert families()["mistral"].shape_of(carried) == narrow
    assert {f.name for f in families().values() if f.carrier and f.hidden_multiple_of_heads} == {"llama"}
    biased = frozenset({"model.layers.{layer}.self_attn.q_proj.bias"})
    assert family.carried_by(narrow, biased) is None


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_renamed_modules_are_in_the_class(name: str) -> None:
    model = genuine(name)
    modules = dict(model.named_modules())
    family = families()[name]
    for weight in family.weights:
        if not weight.is_bias and not weight.per_expert and weight.role != "head":
            assert family.module_of(weight, 1) in modules
    head = family.find("head")
    if head is not None and head.module not in modules:
        assert modules[family.module_of(head, 0)] is model.get_output_embeddings()


def _document() -> dict[str, Any]:
    return {
        "name": "x", "model_types": ["x"], "gguf_architecture": "", "config": {"layers": "n"}, "config_keep": [],
        "weights": [{"name": "a.weight", "dims": ["hidden"], "role": "final_norm"}],
    }  # fmt: skip


def test_a_sound_table_is_read() -> None:
    assert parse(Family, _document()).row("final_norm").name == "a.weight"


def test_an_unknown_key_of_a_table_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="colour"):
        parse(Family, {**_document(), "colour": "red"})


def test_an_unknown_key_of_a_row_is_refused() -> None:
    document = _document()
    document["weights"][0]["colour"] = "red"
    with pytest.raises(InvalidSpec, match="colour"):
        parse(Family, document)


@pytest.mark.parametrize("dimension", ["width", "ffn+", "heads*x", "heads*", ""])
def test_an_unknown_dimension_is_refused(dimension: str) -> None:
    document = _document()
    document["weights"][0]["dims"] = [dimension]
    with pytest.raises(InvalidSpec, match="dimension"):
        parse(Family, document)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3_moe", "mlp_only_layers", [0]),
        ("qwen3_moe", "decoder_sparse_step", 2),
        ("stablelm", "qk_layernorm", True),
        ("stablelm", "use_parallel_residual", True),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "tie_word_embeddings", False),
    ],
)
def test_a_setting_outside_the_table_is_refused_by_name(name: str, key: str, value: Any) -> None:
    config = genuine(name).config.to_dict()
    assert families()[name].shape_of(config)
    with pytest.raises(UnsupportedFamily, match=key):
        families()[name].shape_of({**config, key: value})


@pytest.mark.parametrize("written", ["num_experts", "num_local_experts"])
def test_qwen3_moe_experts_are_read_under_both_names(written: str) -> None:
    family = families()["qwen3_moe"]
    config = genuine("qwen3_moe").config.to_dict()
    config.pop("num_experts", None)
    config.pop("num_local_experts", None)
    with pytest.raises(DamagedCheckpoint, match="num_experts"):
        family.shape_of(config)
    shape = family.shape_of({**config, written: 6})
    assert shape.experts == 6
    assert AutoConfig.for_model(**family.config_for({**config, written: 6}, shape)).num_experts == 6


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_count(name: str) -> None:
    config, count = PUBLISHED[name]
    family = family_of(config)
    present = frozenset(w.name for w in family.weights if w.optional and name in BIASED)
    assert family.parameter_count(family.shape_of(config), present) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_means_the_same_when_rewritten(name: str) -> None:
    config, _ = PUBLISHED[name]
    family = family_of(config)
    shape = family.shape_of(config)
    before = _view(config)
    after = _view(family.config_for(config, shape))
    derived = {key: getattr(shape, axis) for axis, key in family.config.items()}
    for key in ("head_dim", "n_inner"):  # written out where the class would work it out
        if before.get(key) is None and key in after:
            assert after.pop(key) == derived[key]
            before.pop(key, None)
    assert after == before
