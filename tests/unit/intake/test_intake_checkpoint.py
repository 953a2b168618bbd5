"""A teacher's folder: what opens, and what is refused with a reason that names the way out."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from foundry.errors import DamagedCheckpoint, FoundryError, TeacherNotFound, UnsafeCheckpoint, UnsupportedFamily
from foundry.intake.checkpoint import (
    check_tokenizer,
    checkpoint_sha256,
    context_limit,
    open_checkpoint,
    open_config,
)
from foundry.intake.safetensors import read_header
from tests.checkpoints import LLAMA, halves, sizes_of, write_checkpoint, write_config, write_sharded, write_tensors

Q_BIAS = "model.layers.{layer}.self_attn.q_proj.bias"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_open_checkpoint_gives_every_tensor_of_the_table_when_sound(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path))
    assert {name: entry.size for name, entry in checkpoint.tensors.items()} == sizes_of()
    assert checkpoint.family.name == "llama"
    assert checkpoint.shape.layers == 2
    assert checkpoint.present == frozenset()
    assert context_limit(checkpoint.config) == 64


def test_open_checkpoint_gives_the_same_tensors_when_sharded(tmp_path: Path) -> None:
    first, second = halves(sizes_of())
    checkpoint = open_checkpoint(write_sharded(tmp_path, {ONE: first, TWO: second}))
    assert {name: entry.size for name, entry in checkpoint.tensors.items()} == sizes_of()
    assert {entry.file.name for entry in checkpoint.tensors.values()} == {ONE, TWO}


def test_open_checkpoint_names_optional_rows_when_present(tmp_path: Path) -> None:
    sizes = sizes_of(present=frozenset({Q_BIAS}))
    assert open_checkpoint(write_checkpoint(tmp_path, sizes=sizes)).present == {Q_BIAS}


def test_open_checkpoint_refuses_when_an_optional_row_is_in_one_layer_only(tmp_path: Path) -> None:
    sizes = {**sizes_of(), Q_BIAS.format(layer=0): (32,)}
    with pytest.raises(DamagedCheckpoint, match=r"layers\.1\.self_attn\.q_proj\.bias.*missing"):
        open_checkpoint(write_checkpoint(tmp_path, sizes=sizes))


@pytest.mark.parametrize("copies", [False, True], ids=["without a copy", "with a copy of the head"])
def test_open_checkpoint_reads_the_embedding_once_when_tied(tmp_path: Path, copies: bool) -> None:
    tied = {**LLAMA, "tie_word_embeddings": True}
    sizes = {**sizes_of(tied), **({"lm_head.weight": (96, 32)} if copies else {})}
    assert "lm_head.weight" not in open_checkpoint(write_checkpoint(tmp_path, tied, sizes)).tensors


def test_open_checkpoint_ignores_rotary_buffers_when_saved_by_old_versions(tmp_path: Path) -> None:
    sizes = {**sizes_of(), "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}
    assert set(open_checkpoint(write_checkpoint(tmp_path, sizes=sizes)).tensors) == set(sizes_of())


def _without(name: str) -> dict[str, tuple[int, ...]]:
    return {n: size for n, size in sizes_of().items() if n != name}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        pytest.param(_without("model.norm.weight"), "'model.norm.weight' is missing", id="missing tensor"),
        pytest.param(_without("lm_head.weight"), "'lm_head.weight' is missing", id="missing head of an untied model"),
        pytest.param({**sizes_of(), "model.norm.weight": (33,)}, r"\(33,\).*asks for \(32,\)", id="wrong size"),
        pytest.param({**sizes_of(), "model.extra.weight": (2,)}, r"1 tensors.*'model\.extra", id="left over"),
        pytest.param(
            {**sizes_of(), "model.layers.2.mlp.up_proj.weight": (64, 32)}, "not in the llama", id="layer too many"
        ),
    ],
)
def test_open_checkpoint_refuses_when_weights_disagree_with_config(tmp_path: Path, sizes: Any, message: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=message):
        open_checkpoint(write_checkpoint(tmp_path, sizes=sizes))


def test_open_checkpoint_refuses_when_the_copy_of_a_tied_head_has_another_size(tmp_path: Path) -> None:
    tied = {**LLAMA, "tie_word_embeddings": True}
    with pytest.raises(DamagedCheckpoint, match="lm_head"):
        open_checkpoint(write_checkpoint(tmp_path, tied, {**sizes_of(tied), "lm_head.weight": (95, 32)}))


def test_open_checkpoint_refuses_when_the_copy_of_a_tied_head_has_other_numbers(tmp_path: Path) -> None:
    tied = {**LLAMA, "tie_word_embeddings": True}
    folder = write_checkpoint(tmp_path, tied, {**sizes_of(tied), "lm_head.weight": (96, 32)})
    head = read_header(folder / "model.safetensors")["lm_head.weight"]
    with head.file.open("r+b") as file:
        file.seek(head.end - 1)
        file.write(b"\x01")
    with pytest.raises(DamagedCheckpoint, match=r"tie_word_embeddings.*'lm_head.weight'.*set it to false"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden_size": None}, DamagedCheckpoint, "hidden_size is None"),
        ({"hidden_size": "32"}, DamagedCheckpoint, "hidden_size is '32'"),
        ({"num_hidden_layers": 0}, DamagedCheckpoint, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, DamagedCheckpoint, "more than 1024"),
        ({"num_attention_heads": True}, DamagedCheckpoint, "num_attention_heads"),
        ({"num_key_value_heads": 3}, DamagedCheckpoint, "cannot share"),
        ({"model_type": "bloom"}, UnsupportedFamily, "'bloom'.*Supported: .*llama"),
        ({"model_type": ["llama"]}, UnsupportedFamily, "Supported"),
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, UnsafeCheckpoint, "auto_map.*never runs"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedFamily, "before quantisation"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_open_config_refuses_when_the_config_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], error: type[FoundryError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        open_config(write_config(tmp_path, {**LLAMA, **changes}))
    assert caught.value.pointer == "/teacher"


def test_open_config_drops_keys_that_steer_library_internals_when_present(tmp_path: Path) -> None:
    hostile = {**LLAMA, "_attn_implementation_internal": "evil/kernel", "_name_or_path": "x"}
    config, _, _ = open_config(write_config(tmp_path, hostile))
    assert config == LLAMA


def test_open_config_reads_a_bare_file_when_there_are_no_weights(tmp_path: Path) -> None:
    folder, file = open_config(write_config(tmp_path)), open_config(tmp_path / "config.json")
    assert folder == file


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b'"text"', b"\xff\xfe", b'{"a":' * 100_000, b" " * (2**20 + 1)],
    ids=["empty", "list", "cut", "text", "not UTF-8", "deep", "too large"],
)
def test_open_config_refuses_when_it_is_not_a_json_object(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(DamagedCheckpoint, match=r"config\.json"):
        open_config(tmp_path)


@pytest.mark.parametrize("name", ["missing", "mis\0sing", "x" * 5000], ids=["missing", "zero byte", "too long"])
def test_open_checkpoint_says_what_to_give_when_nothing_is_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(TeacherNotFound, match=r"no teacher at.*config\.json.*ORG/NAME"):
        open_checkpoint(tmp_path / name)


def test_open_checkpoint_refuses_when_the_folder_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"holds no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "consolidated.00.pth"])
def test_open_checkpoint_refuses_unread_when_weights_are_pickled(tmp_path: Path, name: str) -> None:
    (write_config(tmp_path) / name).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UnsafeCheckpoint, match=rf"{name}.*pickled.*save_pretrained"):
        open_checkpoint(tmp_path)


def test_open_checkpoint_ignores_pickles_when_safetensors_stand_beside_them(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert open_checkpoint(tmp_path).tensors


@pytest.mark.parametrize(
    ("name", "message"),
    [("modeling.py", "neither model.safetensors"), ("adapter_model.safetensors", "merge it"), ("x.gguf", "neither")],
)
def test_open_checkpoint_refuses_when_there_are_no_weights(tmp_path: Path, name: str, message: str) -> None:
    (write_config(tmp_path) / name).write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match=message):
        open_checkpoint(tmp_path)


def test_open_checkpoint_refuses_when_a_shard_is_missing(tmp_path: Path) -> None:
    first, second = halves(sizes_of())
    (write_sharded(tmp_path, {ONE: first, TWO: second}) / TWO).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"holds no {TWO}"):
        open_checkpoint(tmp_path)


def test_open_checkpoint_refuses_when_a_tensor_stands_in_two_shards(tmp_path: Path) -> None:
    first, second = halves(sizes_of())
    twice = next(iter(first))
    with pytest.raises(DamagedCheckpoint, match=f"{twice}.*also stands in {ONE}"):
        open_checkpoint(write_sharded(tmp_path, {ONE: first, TWO: {**second, twice: first[twice]}}))


@pytest.mark.parametrize("lie", ["moved", "left out"])
def test_open_checkpoint_refuses_when_the_index_lies(tmp_path: Path, lie: str) -> None:
    first, second = halves(sizes_of())
    weight_map = {**dict.fromkeys(first, ONE), **dict.fromkeys(second, TWO)}
    if lie == "moved":
        weight_map["model.norm.weight"] = TWO
    else:
        del weight_map["model.norm.weight"]
    with pytest.raises(DamagedCheckpoint, match=r"'model\.norm\.weight' is not in the file that the index names"):
        open_checkpoint(write_sharded(tmp_path, {ONE: first, TWO: second}, weight_map))


def test_open_checkpoint_refuses_when_one_file_and_an_index_compete(tmp_path: Path) -> None:
    first, second = halves(sizes_of())
    write_tensors(write_sharded(tmp_path, {ONE: first, TWO: second}) / "model.safetensors", sizes_of())
    with pytest.raises(DamagedCheckpoint, match="remove the other"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", 7, ""])
def test_open_checkpoint_refuses_when_the_index_points_elsewhere(tmp_path: Path, shard: Any) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(UnsafeCheckpoint, match=r"not a \.safetensors file of this folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_open_checkpoint_refuses_when_a_link_leaves_the_folder(tmp_path: Path, name: str) -> None:
    folder, outside = write_checkpoint(tmp_path / "teacher"), tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(UnsafeCheckpoint, match=f"{name} is a link that leaves its folder"):
        open_checkpoint(folder)


def test_open_checkpoint_follows_a_link_when_it_stays_in_the_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert open_checkpoint(folder).tensors


def _hub_cache(root: Path) -> Path:
    """A teacher as the hub's cache keeps it: links into the blobs of its own entry."""
    entry = root / "models--org--name"
    snapshot = write_checkpoint(entry / "snapshots" / "abc123")
    (entry / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(entry / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    return snapshot


def test_open_checkpoint_follows_links_when_they_are_the_hub_caches_own(tmp_path: Path) -> None:
    assert open_checkpoint(_hub_cache(tmp_path)).tensors


def test_open_checkpoint_refuses_when_the_blobs_folder_is_itself_a_link(tmp_path: Path) -> None:
    snapshot = _hub_cache(tmp_path)
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(tmp_path / "outside")
    blobs.symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeCheckpoint, match="leaves its folder"):
        open_checkpoint(snapshot)


def test_open_checkpoint_refuses_when_a_link_leads_in_a_circle(tmp_path: Path) -> None:
    (write_config(tmp_path) / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(DamagedCheckpoint):
        open_checkpoint(tmp_path)


def test_open_checkpoint_refuses_instead_of_waiting_when_a_file_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(write_config(tmp_path) / "model.safetensors")
    with pytest.raises(UnsafeCheckpoint, match="not a regular file"):
        open_checkpoint(tmp_path)


def test_checkpoint_sha256_changes_when_one_weight_changes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    before = checkpoint_sha256(folder)
    assert before == checkpoint_sha256(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert checkpoint_sha256(folder) != before


def test_check_tokenizer_names_the_file_when_missing(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    check_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"tokenizer\.json.*save_pretrained"):
        check_tokenizer(folder)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shard_size", ["5GB", "10KB"], ids=["one file", "shards"])
def test_open_checkpoint_opens_what_transformers_saves(tmp_path: Path, tied: bool, shard_size: str) -> None:
    from tests.tiny import new_model  # torch takes seconds to import; only this test needs it

    model = new_model(tied=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    checkpoint = open_checkpoint(tmp_path)
    assert {name: entry.size for name, entry in checkpoint.tensors.items()} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }
