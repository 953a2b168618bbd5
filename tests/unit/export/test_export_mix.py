"""Which types a mixed file gets, and that its bytes are those that were counted."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.engine.export.activations import Tuning, hear
from foundry.engine.export.gguf import write_gguf
from foundry.engine.export.mix import STEPS, Class, choose_mix, measure_classes, raised
from foundry.engine.export.vocabulary import vocabulary_of
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.formats import bits_of
from foundry.spec.weights import Role
from tests.families import VOCABULARY, save_genuine
from tests.tiny import new_model, new_tokenizer, save

PASSAGES = [np.random.default_rng(seed).integers(1, VOCABULARY, 24).tolist() for seed in range(2)]
ROLES: tuple[Role, ...] = ("embedding", "v", "down")


def of(cost_nats: float, values: int = 1024) -> Class:
    return Class(cost_nats, values, {kind: int(values * bits_of(kind) / 8) for kind in STEPS})


def taken(classes: dict[Role, Class], mix: dict[Role, str]) -> int:
    return sum(classes[role].sizes[kind] for role, kind in mix.items())  # type: ignore[index]


def test_bytes_go_where_they_buy_most() -> None:
    classes: dict[Role, Class] = {"v": of(0.1), "down": of(0.1, values=10240), "q": of(0.001)}
    least = taken(classes, dict.fromkeys(classes, STEPS[0]))
    assert raised(classes, least) == {"v": "Q4_K", "down": "Q4_K", "q": "Q4_K"}
    assert raised(classes, least + 300) == {"v": "Q6_K", "down": "Q4_K", "q": "Q4_K"}
    assert raised(classes, 10**9) == dict.fromkeys(classes, "Q8_0")


def test_bits_stop_rising_once_the_divergence_is_small_enough() -> None:
    classes: dict[Role, Class] = {"v": of(0.04), "down": of(0.04)}
    mix = raised(classes, 10**9, enough_nats=0.055)
    assert sorted(mix.values()) == ["Q4_K", "Q5_K"]
    assert raised(classes, 10**9, enough_nats=0.1) == {"v": "Q4_K", "down": "Q4_K"}


@given(
    costs=st.lists(st.floats(0, 1), min_size=3, max_size=3), values=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    extra=st.integers(0, 20_000),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_a_mix_never_takes_more_than_it_may(costs: list[float], values: list[int], extra: int) -> None:
    classes = {role: of(c, 256 * v) for role, c, v in zip(ROLES, costs, values, strict=True)}
    limit = taken(classes, dict.fromkeys(classes, STEPS[0])) + extra
    assert taken(classes, raised(classes, limit)) <= limit  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox", "qwen3_moe"])
def test_classes_of_every_kind_of_family_are_measured_and_the_model_is_as_before(name: str, tmp_path: Path) -> None:
    model = save_genuine(tmp_path / "model", name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    checkpoint = open_checkpoint(tmp_path / "model")
    classes = measure_classes(model, checkpoint, {}, PASSAGES)
    matrices = {w.role for w in checkpoint.family.weights if len(w.dims) == 2 and not w.per_expert}
    assert set(classes) == matrices - {"positions", "router"} - ({"head"} if checkpoint.shape.tied else set())
    assert all(one.cost_nats > 0 for one in classes.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_file_has_the_types_that_were_chosen_and_no_more_bytes_than_allowed(tmp_path: Path) -> None:
    model = new_model(hidden=256, ffn=512, heads=8, kv_heads=4, head_dim=32, vocabulary=VOCABULARY)
    checkpoint = open_checkpoint(save(tmp_path / "model", model))
    activations = hear(model, checkpoint, PASSAGES)
    limit = int(5.5 / 8 * checkpoint.family.parameter_count(checkpoint.shape))
    mix = choose_mix(model, checkpoint, activations, PASSAGES, limit, 0.0)
    assert len(set(mix.values())) > 1
    path = tmp_path / "x.gguf"
    vocabulary = vocabulary_of(new_tokenizer(), VOCABULARY)
    write_gguf(checkpoint, vocabulary, path, quantisation="mixed", name="x", tuning=Tuning(activations, mix))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert 0.9 * limit < sum(int(tensor.n_bytes) for tensor in tensors.values()) <= limit
    assert tensors["token_embd.weight"].tensor_type.name == mix["embedding"]
    assert {tensors[f"blk.{layer}.ffn_down.weight"].tensor_type.name for layer in range(2)} == {mix["down"]}
