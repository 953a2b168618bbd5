"""Stages of a job on a GPU: the whole of one, distillation in every manner, the cut that a CPU makes, one of many."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from foundry.engine import pipeline
from foundry.engine.context import RunContext, choose_dtype
from foundry.engine.corpus import Corpus, pack
from foundry.engine.distill.launch import launch
from foundry.engine.distill.stage import distill
from foundry.engine.evaluate.compare import compare
from foundry.engine.export.stage import export
from foundry.engine.models import load_model, load_tokenizer
from foundry.engine.prune.stage import prune, read_plan
from foundry.engine.workspace import Inputs, Workspace, read_json
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.record import parse
from tests import tiny
from tests.export_questions import ask_here
from tests.gpu.conftest import DEVICE, needs_gpu, new_model
from tests.unit.engine.conftest import FFN, Heard, MakeWorkspace
from tests.unit.engine.conftest import make_workspace as make_workspace

pytestmark = needs_gpu

ASKED = {"tokens": 8192, "batch_tokens": 512, "learning_rate": 3e-3}
MANNERS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "muon, averaged": {"optimizer": "muon", "ema_decay": 0.9},
    "hidden states, activations recomputed": {"hidden": {"kind": "mse"}, "gradient_checkpointing": True},
    "a saved signal": {"signal": {"kind": "top_k", "k": 32}},
    "reverse KL, warm, with the text": {"loss": "reverse_kl", "temperature": 2.0, "cross_entropy_weight": 0.1},
    "JSD, the best look kept": {"loss": {"kind": "jsd", "beta": 0.5}, "patience_looks": 9},
}


def new_job(folder: Path, **stages: Any) -> tuple[JobSpec, Workspace]:
    """A job on a new random teacher, whose prune stage is still to come."""
    model = new_model(1, layers=3)
    tiny.save(folder / "teacher", model)
    tiny.write_texts(folder / "data.jsonl", documents=300, words=30)
    document = {
        "teacher": str(folder / "teacher"), "data": "data.jsonl",
        "targets": [{"name": "kiosk", "max_params": int(0.6 * model.num_parameters()), "context_tokens": 64}],
        "prune": {"calibration_tokens": 4096, "candidates": 2}, **stages,
    }  # fmt: skip
    spec = parse(JobSpec, document)
    inputs = Inputs(teacher=spec.teacher, data=str(folder / "data.jsonl"), data_sha256="0" * 64)
    return spec, Workspace.create(folder / "workspace", spec, inputs)


def test_every_stage_of_a_job_runs(
    context: RunContext, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The runtime's own code opens the file, but here: a process that loads transformers costs more than all stages.
    monkeypatch.setitem(pipeline._STAGE, "export", partial(export, ask=ask_here))
    has_llama_cpp = find_spec("xllamacpp") is not None and find_spec("gguf") is not None
    spec, workspace = new_job(
        tmp_path, formats=["safetensors", "gguf:f16"] if has_llama_cpp else ["safetensors"],
        correct={"tokens": 4096}, distill={"tokens": 32768, "learning_rate": 2e-3}, lora={"tokens": 4096, "rank": 4},
        evaluate={"tokens": 1024},
    )  # fmt: skip
    pipeline.run(spec, workspace, replace(context, dtype=choose_dtype(DEVICE)))
    (variant,) = pipeline.variants(workspace)
    manifest = read_json(variant / "manifest.json")
    assert not manifest["failed_formats"]
    model = AutoModelForCausalLM.from_pretrained(variant / "safetensors", dtype=torch.float32)
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape[1] > 3
    apart = {row["model"]: row["kl_to_teacher"] for row in manifest["metrics"]}
    print(f"\nKL to the teacher: {apart}")
    assert apart["distilled"] < apart["pruned"]
    done = [event.message for event in heard.of(EventType.STAGE_COMPLETED)]
    assert [message.split()[0] for message in done] == ["correct", "prune", "distill", "lora", "evaluate", "export"]


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
def test_distill_lowers_the_loss_in_every_manner(
    manner: dict[str, Any], make_workspace: MakeWorkspace, context: RunContext
) -> None:
    spec, workspace = make_workspace(distill=ASKED | manner)
    distill(spec, workspace, replace(context, dtype=choose_dtype(DEVICE)))
    for target in FFN:
        rows = read_json(workspace.stage("distill", target) / "history.json")["rows"]
        losses = [row["loss"] for row in rows if "loss" in row]
        assert losses[-1] < 0.95 * losses[0]


def test_prune_cuts_on_a_gpu_what_it_cuts_on_a_cpu(context: RunContext, tmp_path: Path) -> None:
    plans, folders = [], []
    for number, device in enumerate((torch.device("cpu"), DEVICE)):
        (folder := tmp_path / str(number)).mkdir()
        spec, workspace = new_job(folder)
        prune(spec, workspace, replace(context, device=device))
        plans.append(read_plan(workspace, "kiosk"))
        folders.append(workspace.stage("prune", "kiosk") / "model")
    assert plans[1] == plans[0]
    one, other, teacher = (
        load_model(path, dtype=torch.float32, device="cpu") for path in (*folders, tmp_path / "0" / "teacher")
    )
    # Not weight by weight: the axes that the residual stream is turned to have no sign.
    corpus = Corpus.load(tmp_path / "0" / "data.jsonl", load_tokenizer(folders[0]), seed=0)
    text = pack(corpus.held_out, load_tokenizer(folders[0]), 64, seed=0)
    here = replace(context, device=torch.device("cpu"))
    apart, lost = (compare(other, model, text, here).kl_to_teacher for model in (one, teacher))
    print(f"\nKL of the two students {apart:.2e}, of one to its teacher {lost:.2e}")
    assert apart is not None and lost is not None
    assert apart < 0.02 * lost


def test_distill_through_torchrun_learns_what_it_does_without(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    """One process, whose models lie in the shards of FSDP; on a GPU it speaks NCCL."""
    here = replace(context, dtype=choose_dtype(DEVICE))
    asked = ASKED | {"checkpoint_steps": 5}
    spec, alone = make_workspace("alone", distill=asked)
    distill(spec, alone, here)
    _, launched = make_workspace("launched", distill=asked)
    launched.note_micro_batch("distill", 3)  # of 8 rows: gradients of several parts add up
    launch(launched, here)
    for target in FFN:
        one, other = (read_json(w.stage("distill", target) / "history.json")["rows"] for w in (alone, launched))
        for key in ("loss", "held_out_loss"):
            expected = [row[key] for row in one if key in row]
            assert [row[key] for row in other if key in row] == pytest.approx(expected, rel=5e-3)
        file = launched.stage("distill", target) / "model" / "model.safetensors"
        assert (
            load_file(file).keys() == load_file(alone.stage("distill", target) / "model" / "model.safetensors").keys()
        )
