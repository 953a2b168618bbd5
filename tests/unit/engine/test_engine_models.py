"""Models come from safetensors without code, and go back as the plain folder they came from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from foundry.engine.models import attention_of, load_model, load_tokenizer, local_folder, save_model, trunk_and_head
from foundry.errors import DamagedCheckpoint, TeacherNotFound
from tests import tiny

IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "teacher")


def test_load_model_gives_what_was_saved_in_eval_mode(folder: Path) -> None:
    model = load_model(folder, dtype=torch.float32, device="cpu")
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(IDS).logits, tiny.new_model()(IDS).logits, rtol=0, atol=0)


def test_scores_that_are_capped_are_not_left_to_a_kernel_without_a_cap() -> None:
    # Llama's class has the kernel in every version of transformers, Gemma 2's in some.
    assert attention_of(LlamaConfig()) == "sdpa"
    assert attention_of(LlamaConfig(attn_logit_softcapping=50.0)) == "eager"


@pytest.mark.parametrize("tied", [False, True])
def test_trunk_and_head_give_the_logits_of_the_whole(tied: bool) -> None:
    model = tiny.new_model(tied=tied)
    trunk, head_VH, softcap = trunk_and_head(model)
    assert softcap is None
    hidden = trunk(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(hidden @ head_VH.T, model(IDS).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_save_model_gives_equal_logits_when_opened_by_plain_transformers(tmp_path: Path, tied: bool) -> None:
    model = tiny.new_model(tied=tied)
    source = tiny.save(tmp_path / "source", model)
    save_model(model, like=source, folder=tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").dtype == torch.bfloat16
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    torch.testing.assert_close(opened(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    assert ("lm_head.weight" in weights) == (not tied)


def test_save_model_keeps_config_keys_and_tokenizer_files_as_they_were(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"rope_theta": 10000.0, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "notes.py").write_text("print('code')")
    save_model(load_model(folder, dtype=torch.float32, device="cpu"), like=folder, folder=tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved == config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (tmp_path / "saved" / "notes.py").exists()


def test_local_folder_says_what_to_give_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(TeacherNotFound, match="give a folder or a hub id") as caught:
        local_folder(tmp_path / "nowhere")
    assert caught.value.pointer == "/teacher"


def test_local_folder_names_the_way_out_when_the_hub_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("foundry.engine.models.HF_HOME", str(tmp_path))
    with pytest.raises(TeacherNotFound, match="'org/name@main' could not be fetched from the hub"):
        local_folder("org/name@main")


def test_load_model_says_damaged_when_weights_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(DamagedCheckpoint) as caught:
        load_model(folder, dtype=torch.float32, device="cpu")
    assert caught.value.pointer == "/teacher"


def test_load_model_never_reads_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DamagedCheckpoint):
        load_model(folder, dtype=torch.float32, device="cpu")


def test_load_tokenizer_says_how_to_save_one_when_it_is_missing(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(DamagedCheckpoint, match="save_pretrained"):
        load_tokenizer(folder)
