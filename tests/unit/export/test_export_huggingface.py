import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from foundry.engine.export.huggingface import write_huggingface
from foundry.engine.models import load_tokenizer
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from tests.families import FAMILY_NAMES, genuine
from tests.tiny import CHAT_TEMPLATE, new_model, new_tokenizer, save
from tests.unit.export.conftest import Make

IDS = torch.tensor([[5, 9, 200, 3, 77, 12]])


def ship(checkpoint: Checkpoint, folder: Path) -> Path:
    folder.mkdir()
    write_huggingface(checkpoint, load_tokenizer(checkpoint.folder), folder)
    return folder


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).float()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_huggingface_folder_gives_the_same_logits_bit_for_bit(
    tied: bool, dtype: torch.dtype, make_checkpoint: Make, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(dtype, tied=tied, attention_bias=True)
    shipped = ship(checkpoint, tmp_path / "shipped")
    assert torch.equal(logits(shipped), logits(checkpoint.folder))
    assert {entry.dtype for entry in open_checkpoint(shipped).tensors.values()} == {
        "BF16" if dtype == torch.bfloat16 else "F16"
    }
    assert ("lm_head.weight" in open_checkpoint(shipped).tensors) is not tied


def test_huggingface_folder_rounds_float32_to_bfloat16(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(torch.float32)
    shipped = ship(checkpoint, tmp_path / "shipped")
    assert torch.equal(logits(shipped), logits(checkpoint.folder, torch.bfloat16))


def test_huggingface_folder_has_the_type_that_a_job_asks_for(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(torch.bfloat16)
    tmp_path.joinpath("half").mkdir()
    write_huggingface(checkpoint, load_tokenizer(checkpoint.folder), tmp_path / "half", "float16")
    assert {entry.dtype for entry in open_checkpoint(tmp_path / "half").tensors.values()} == {"F16"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    torch.testing.assert_close(logits(tmp_path / "half"), logits(checkpoint.folder), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((70_000.0, 1.0), r"holds 70,144,.*leave export\.dtype out"),
        ((70_000.0, math.nan), r"holds 70,144,.*leave export\.dtype out"),
        ((math.nan, 1.0), r"holds NaN or infinity itself.*another dtype does not mend"),
    ],
)
def test_a_weight_that_float16_cannot_hold_is_named_with_the_way_out(
    values: tuple[float, float], says: str, tmp_path: Path
) -> None:
    model = new_model().bfloat16()
    model.model.norm.weight.data[3:5] = torch.tensor(values)
    checkpoint = open_checkpoint(save(tmp_path / "large", model))
    tmp_path.joinpath("half").mkdir()
    with pytest.raises(ExportFailed, match=rf"model\.norm\.weight {says}"):
        write_huggingface(checkpoint, load_tokenizer(checkpoint.folder), tmp_path / "half", "float16")


def test_huggingface_config_is_spelt_for_transformers_4_and_5(make_checkpoint: Make, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    checkpoint = make_checkpoint(rope_parameters=rope)
    shipped = ship(checkpoint, tmp_path / "shipped")
    config = json.loads((shipped / "config.json").read_text())
    theta = rope.pop("rope_theta")
    assert config["rope_parameters"] == {**rope, "rope_theta": theta}
    assert (config["rope_theta"], config["rope_scaling"]) == (theta, rope)
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert torch.equal(logits(shipped), logits(checkpoint.folder))


def test_huggingface_config_says_what_was_only_assumed(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    silent = {k: v for k, v in checkpoint.config.items() if k not in ("rms_norm_eps", "hidden_act")}
    (checkpoint.folder / "config.json").write_text(json.dumps(silent))
    shipped = ship(open_checkpoint(checkpoint.folder), tmp_path / "shipped")
    config = json.loads((shipped / "config.json").read_text())
    assert (config["rms_norm_eps"], config["hidden_act"]) == (1e-6, "silu")


def test_huggingface_tokenizer_cuts_alike_and_keeps_its_chat_template(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    tokenizer = new_tokenizer(chat=True)
    folder = tmp_path / "shipped"
    folder.mkdir()
    write_huggingface(checkpoint, tokenizer, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    read = AutoTokenizer.from_pretrained(folder)
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read("the cat <|endoftext|> 日本")["input_ids"] == tokenizer("the cat <|endoftext|> 日本")["input_ids"]
    assert (read.eos_token, read.chat_template) == ("<|endoftext|>", CHAT_TEMPLATE)


def test_huggingface_tokenizer_keeps_added_special_tokens(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    tokenizer = load_tokenizer(checkpoint.folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    folder = tmp_path / "shipped"
    folder.mkdir()
    write_huggingface(checkpoint, tokenizer, folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["additional_special_tokens"] == ["<|user|>"]
    read = AutoTokenizer.from_pretrained(folder)
    assert read("a<|user|>b")["input_ids"] == tokenizer("a<|user|>b")["input_ids"]
    assert read.decode([len(tokenizer) - 1], skip_special_tokens=True) == ""


def test_huggingface_folder_holds_plain_files_alone(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    (checkpoint.folder / "modeling_custom.py").write_text("raise SystemExit")
    shipped = ship(checkpoint, tmp_path / "shipped")
    assert sorted(path.name for path in shipped.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert GenerationConfig.from_pretrained(shipped).eos_token_id == 0


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_huggingface_folder_of_every_family_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    genuine(name).bfloat16().save_pretrained(tmp_path / "model")
    checkpoint, shipped = open_checkpoint(tmp_path / "model"), tmp_path / "shipped"
    shipped.mkdir()
    write_huggingface(checkpoint, new_tokenizer(), shipped)
    assert torch.equal(logits(shipped), logits(checkpoint.folder))
