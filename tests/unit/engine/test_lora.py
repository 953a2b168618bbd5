"""LoRA: an adapter that starts as nothing, learns, resumes exactly, and merges to what it was attached."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from foundry.engine.context import RunContext, Stopped
from foundry.engine.lora import adapted_modules, attach, lora, merge, open_adapter, save_adapter
from foundry.engine.models import load_model
from foundry.engine.workspace import read_json
from foundry.spec.family import families
from tests import tiny
from tests.unit.engine.conftest import FFN, Heard, MakeWorkspace

IDS = torch.arange(24).reshape(2, 12)
SHORT = {"rank": 4, "alpha": 8, "tokens": 4096, "learning_rate": 1e-2}
CPU = torch.device("cpu")


def trained_adapter(folder: Path) -> PeftModel:
    """A tiny model with an adapter that does something."""
    model = attach(load_model(folder, dtype=torch.float32, device=CPU), rank=4, alpha=8, dropout=0.0, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def test_adapted_modules_are_all_seven_projections_of_the_llama_table() -> None:
    assert adapted_modules(families()["llama"]) == [
        "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj",
        "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
    ]  # fmt: skip


def test_attached_adapter_changes_nothing_before_training_and_alone_is_trained(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base")
    base = load_model(folder, dtype=torch.float32, device=CPU)
    expected = base(IDS).logits
    model = attach(base, rank=4, alpha=8, dropout=0.0, seed=0)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name for name in trained)


def test_merged_adapter_equals_the_attached_one(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base")
    model = trained_adapter(folder)
    attached = model(IDS).logits
    assert (attached - tiny.new_model()(IDS).logits).abs().max() > 0.1
    merged = model.merge_and_unload()(IDS).logits
    torch.testing.assert_close(merged, attached, rtol=0, atol=2e-5)


def test_merged_files_equal_the_attached_files_up_to_bfloat16(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base")
    model = trained_adapter(folder)
    save_adapter(model, tmp_path / "adapter")
    merge(folder, tmp_path / "adapter", tmp_path / "merged")
    reopened = open_adapter(load_model(folder, dtype=torch.float32, device=CPU), tmp_path / "adapter")
    torch.testing.assert_close(reopened.eval()(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    exact = {name: tensor.bfloat16() for name, tensor in model.merge_and_unload().state_dict().items()}
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert exact.keys() == written.keys()
    assert all(torch.equal(exact[name], written[name]) for name in exact)


def test_saved_adapter_does_not_name_a_folder_of_this_machine(tmp_path: Path) -> None:
    save_adapter(trained_adapter(tiny.save(tmp_path / "base")), tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["inference_mode"] is True


def test_lora_writes_adapter_and_merged_model_for_every_target_and_lowers_the_held_out_loss(
    make_workspace: MakeWorkspace, context: RunContext
) -> None:
    spec, workspace = make_workspace(lora=SHORT)
    lora(spec, workspace, context)
    for target in FFN:
        folder = workspace.stage("lora", target)
        assert (folder / "adapter" / "adapter_model.safetensors").exists()
        assert workspace.student(target) == folder / "model"
        rows = [row["held_out_loss"] for row in read_json(folder / "history.json")["rows"] if "held_out_loss" in row]
        assert rows[-1] < rows[0] - 0.1
        said = workspace.result("lora")["targets"][target]
        assert (said["held_out_loss_before"], said["held_out_loss_after"]) == (rows[0], rows[-1])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_lora_gives_the_same_adapter_when_stopped_and_started_again(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard, dropout: float
) -> None:
    stage = {**SHORT, "tokens": 1024, "dropout": dropout}
    spec, whole = make_workspace("whole", lora=stage)
    lora(spec, whole, context)
    spec, halted = make_workspace("halted", lora=stage)
    heard.events.clear()
    heard.stop_after = 7
    with pytest.raises(Stopped):
        lora(spec, halted, context)
    heard.stop_after = None
    lora(spec, halted, context)
    for target in FFN:
        one, other = (
            load_file(w.stage("lora", target) / "adapter" / "adapter_model.safetensors") for w in (whole, halted)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_lora_trains_in_bfloat16_over_a_frozen_bfloat16_base(
    make_workspace: MakeWorkspace, bf16_context: RunContext
) -> None:
    spec, workspace = make_workspace(lora=SHORT)
    lora(spec, workspace, bf16_context)
    adapter = load_file(workspace.stage("lora", "small") / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    said = workspace.result("lora")["targets"]["small"]
    assert said["held_out_loss_after"] < said["held_out_loss_before"] - 0.1
