"""The whole stage on real models: what ships, what is left out, what is resumed, what is stopped."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from foundry.engine.context import RunContext, Stopped
from foundry.engine.export.apart import Ask, ask
from foundry.engine.export.manifest import adapter_of, check_folder
from foundry.engine.export.measure import measure
from foundry.engine.export.runtime import Answers, Questions
from foundry.engine.export.stage import check_formats, export
from foundry.engine.lora import attach, merge, save_adapter
from foundry.engine.models import copy_tokenizer, load_model
from foundry.engine.prune.slicer import Slicer
from foundry.engine.tensors import write_sharded
from foundry.engine.workspace import Inputs, Workspace, write_json
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import checkpoint_sha256, open_checkpoint
from foundry.serve.offer import open_variant
from foundry.spec.family import families
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from foundry.spec.variant import Metrics, PrunePlan
from tests.export_questions import ask_here
from tests.families import save_genuine
from tests.tiny import new_model, new_tokenizer, save, write_texts

pytestmark = pytest.mark.integration


@dataclass
class Stage:
    """A workspace whose earlier stages are done, and everything that the export says. Files are opened by `ask`."""

    spec: JobSpec
    workspace: Workspace
    events: list[RunEvent] = field(default_factory=list)
    ask: Ask = ask_here

    def context(self, should_stop: Callable[[], bool] = lambda: False) -> RunContext:
        cpu = torch.device("cpu")
        return RunContext(emit=self.events.append, should_stop=should_stop, device=cpu, dtype=torch.float32, seed=0)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        export(self.spec, self.workspace, self.context(should_stop), self.ask)

    def variant(self, target: str) -> Path:
        return self.workspace.root / "stages" / "export" / target / "variant"

    def said(self, kind: EventType) -> list[RunEvent]:
        return [event for event in self.events if event.type == kind]


def prepare(
    root: Path, teacher: Path, data: Path, formats: list[str], *, context_tokens: int = 2048, **ffn: int
) -> Stage:
    """A stage for one target per keyword, its student cut to so many ffn channels and otherwise the teacher."""
    targets = [{"name": name, "max_bytes": 100_000_000, "context_tokens": context_tokens} for name in ffn]
    given = {"teacher": str(teacher), "data": str(data), "targets": targets, "formats": formats, "distill": None}
    spec = parse(JobSpec, given | {"evaluate": {"tokens": 512}, "export": {"activation_tokens": 512}})
    workspace = Workspace.create(root, spec, Inputs(teacher=str(teacher), data=str(data), data_sha256="d" * 64))
    checkpoint = open_checkpoint(teacher)
    for target, channels in ffn.items():
        folder = workspace.stage("prune", target)
        shape = checkpoint.shape.model_copy(update={"ffn": channels})
        plan = PrunePlan(
            family="llama", target=target, teacher_shape=checkpoint.shape, shape=shape,
            layers=tuple(range(shape.layers)), hidden=tuple(range(shape.hidden)),
            ffn=(tuple(range(channels)),) * shape.layers, heads=(tuple(range(shape.heads)),) * shape.layers,
        )  # fmt: skip
        write_json(folder / "plan.json", plan.model_dump(mode="json"))
        (folder / "model").mkdir()
        slicer = Slicer(checkpoint=checkpoint, plan=plan, statistics=None, device=torch.device("cpu"))
        write_sharded(slicer.tensors(), slicer.entries(), folder / "model")
        write_json(folder / "model" / "config.json", checkpoint.family.config_for(checkpoint.config, shape))
        copy_tokenizer(teacher, folder / "model")
        rows = [Metrics(model="teacher", held_out_loss=1.0).model_dump(mode="json")]
        write_json(workspace.stage("evaluate", target) / "metrics.json", rows)
    return Stage(spec, workspace)


def ask_about_the_tablet_apart(module: str, questions: Questions, *, should_stop: Callable[[], bool]) -> Answers:
    """One target in processes of their own, as every job does it; the other here."""
    return (ask if "/tablet/" in questions.model else ask_here)(module, questions, should_stop=should_stop)


@pytest.fixture(scope="module")
def done(demo_teacher: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The demo's teacher, whole for one target and with fewer channels for another."""
    folder = tmp_path_factory.mktemp("job")
    teacher = folder / "teacher"
    shutil.copytree(demo_teacher, teacher)
    (teacher / "README.md").write_text("---\nlicense: psf\n---\n# Demo\n")
    (teacher / "LICENSE").write_text("terms")
    formats = ["safetensors", "gguf:f16", "gguf:q4_k_m"]
    stage = prepare(folder / "workspace", teacher, corpus_file, formats, tablet=768, watch=512)
    done = replace(stage, ask=ask_about_the_tablet_apart)
    done.run()
    return done


@pytest.mark.parametrize("target", ["tablet", "watch"])
def test_variant_is_signed_and_every_format_was_measured_in_its_runtime(done: Stage, target: str) -> None:
    manifest = check_folder(done.variant(target))
    rows = {row.model: row for row in manifest.metrics}
    assert list(rows) == ["teacher", "safetensors", "gguf:f16", "gguf:q4_k_m"]
    assert manifest.failed_formats == {} and manifest.fits_budget
    for form in ("safetensors", "gguf:f16", "gguf:q4_k_m"):
        row = rows[form]
        assert row.held_out_loss == pytest.approx(rows["safetensors"].held_out_loss, abs=0.1)
        assert row.decode_tokens_per_s and row.load_ms and row.peak_memory_bytes and row.hardware and row.runtime
        files = [artifact for artifact in manifest.files if artifact.format == form]
        assert row.file_bytes == max(artifact.bytes for artifact in files)
    assert rows["gguf:f16"].runtime_greedy_tokens == 32 or target == "watch"  # crippled, it has near ties


def test_variant_of_an_uncut_teacher_is_the_teacher_bit_for_bit(done: Stage, demo_teacher: Path) -> None:
    shipped = load_file(done.variant("tablet") / "safetensors" / "model.safetensors")
    original = load_file(demo_teacher / "model.safetensors")
    assert shipped.keys() == original.keys()
    assert all(torch.equal(shipped[name], original[name]) for name in original)


def test_variant_opens_and_speaks_with_plain_transformers(done: Stage) -> None:
    folder = done.variant("watch") / "safetensors"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("def main(", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=8, do_sample=False).shape[1] > ids["input_ids"].shape[1]


def test_variant_says_where_it_comes_from_and_carries_terms_plan_and_importance_matrix(done: Stage) -> None:
    folder = done.variant("watch")
    manifest = check_folder(folder)
    paths = {artifact.path for artifact in manifest.files}
    assert {"README.md", "LICENSE", "plan.json", "spec.json", "quantisation/imatrix.gguf", "watch-f16.gguf"} <= paths
    assert manifest.lineage.teacher_sha256 == checkpoint_sha256(Path(done.workspace.inputs.teacher))
    assert manifest.lineage.data_sha256 == "d" * 64
    assert manifest.lineage.versions["xllamacpp"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: psf" in card and "| feed-forward width | 768 | 512 | 67% |" in card


def test_stage_names_its_variants_and_tells_its_progress(done: Stage) -> None:
    assert done.workspace.result("export") == {
        "variants": ["stages/export/tablet/variant", "stages/export/watch/variant"]
    }
    steps = [event.data["step"] for event in done.said(EventType.PROGRESS)]
    assert steps == list(range(1, 11)) and done.said(EventType.PROGRESS)[-1].data["steps"] == 10
    assert len(done.said(EventType.METRICS)) == 6


def test_stage_keeps_what_is_built_when_it_is_run_again(done: Stage) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.variant("tablet").rglob("*")}
    again = Stage(done.spec, done.workspace)
    again.run()
    assert {p: p.stat().st_mtime_ns for p in done.variant("tablet").rglob("*")} == before
    assert again.said(EventType.METRICS) == []


@pytest.fixture
def lowercasing(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny teacher whose tokenizer GGUF has no words for, and data."""
    document = (
        new_tokenizer().backend_tokenizer.to_str().replace('"normalizer":null', '"normalizer":{"type":"Lowercase"}')
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(document), eos_token="<|endoftext|>")
    return save(tmp_path / "teacher", new_model().bfloat16(), tokenizer), write_texts(tmp_path / "text.jsonl", 100)


def test_stage_ships_the_other_formats_when_one_fails(lowercasing: tuple[Path, Path], tmp_path: Path) -> None:
    stage = prepare(tmp_path / "job", *lowercasing, ["safetensors", "gguf:q4_k_m"], watch=32)
    stage.run()
    manifest = check_folder(stage.variant("watch"))
    assert "Lowercase" in manifest.failed_formats["gguf:q4_k_m"]
    assert {artifact.format for artifact in manifest.files} == {None, "safetensors"}
    assert not manifest.fits_budget and manifest.over_budget == ("there is no gguf:q4_k_m, which the device runs",)
    assert [event.data["format"] for event in stage.said(EventType.WARNING) if "format" in event.data] == [
        "gguf:q4_k_m"
    ]


def test_stage_fails_when_no_format_is_left(lowercasing: tuple[Path, Path], tmp_path: Path) -> None:
    stage = prepare(tmp_path / "job", *lowercasing, ["gguf:q4_k_m"], watch=32)
    with pytest.raises(ExportFailed, match=r"no format passed its check: gguf:q4_k_m: .*Lowercase"):
        stage.run()
    assert list(stage.variant("watch").parent.iterdir()) == []


def test_formats_are_checked_before_anything_is_computed(lowercasing: tuple[Path, Path], tmp_path: Path) -> None:
    stage = prepare(tmp_path / "job", *lowercasing, ["gguf:q4_k_m", "gguf:f16"], watch=32)
    with pytest.raises(ExportFailed, match="Lowercase"):
        check_formats(stage.spec, stage.workspace, stage.context())
    both = replace(stage, spec=stage.spec.model_copy(update={"formats": ("safetensors", "gguf:f16")}))
    check_formats(both.spec, both.workspace, both.context())
    assert ["Lowercase" in event.message for event in both.said(EventType.WARNING)] == [True]


def test_a_family_that_llamacpp_does_not_know_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    save_genuine(tmp_path / "teacher", "ministral")
    data = write_texts(tmp_path / "text.jsonl", 100)
    stage = prepare(tmp_path / "job", tmp_path / "teacher", data, ["safetensors", "gguf:f16"], watch=64)
    check_formats(stage.spec, stage.workspace, stage.context())
    (warning,) = stage.said(EventType.WARNING)
    assert "llama.cpp has no architecture that computes what ministral does" in warning.message
    alone = replace(stage, spec=stage.spec.model_copy(update={"formats": ("gguf:f16",)}))
    with pytest.raises(ExportFailed, match="no architecture"):
        check_formats(alone.spec, alone.workspace, alone.context())


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_stage_ships_every_format_of_another_family(name: str, tmp_path: Path) -> None:
    save_genuine(tmp_path / "teacher", name)
    data = write_texts(tmp_path / "text.jsonl", 100)
    stage = prepare(
        tmp_path / "job", tmp_path / "teacher", data, ["safetensors", "gguf:f16"], context_tokens=64, watch=48
    )
    stage.run()
    manifest = check_folder(stage.variant("watch"))
    assert manifest.failed_formats == {}
    assert {row.model for row in manifest.metrics} == {"teacher", "safetensors", "gguf:f16"}


def test_stage_stops_between_formats_and_leaves_no_half_variant(lowercasing: tuple[Path, Path], tmp_path: Path) -> None:
    stage = prepare(tmp_path / "job", *lowercasing, ["safetensors"], watch=32)
    with pytest.raises(Stopped):
        stage.run(should_stop=lambda: bool(stage.said(EventType.PROGRESS)))
    assert list(stage.variant("watch").parent.iterdir()) == []
    assert not stage.workspace.is_done("export")


def test_stage_ships_gguf_alone_for_a_device_with_a_short_context(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", new_model().bfloat16())
    data = write_texts(tmp_path / "text.jsonl", 100)
    prepared = prepare(tmp_path / "job", teacher, data, ["gguf:q8_0"], context_tokens=20, watch=32)
    half = prepared.spec.export.model_copy(update={"dtype": "float16"})
    stage = replace(prepared, spec=prepared.spec.model_copy(update={"export": half}))
    stage.run()
    manifest = check_folder(stage.variant("watch"))
    formats: dict[str, Any] = {artifact.path: artifact.format for artifact in manifest.files}
    assert formats["watch-q8_0.gguf"] == "gguf:q8_0" and "safetensors" not in formats.values()


def test_stage_takes_more_bits_where_four_cost_too_much_and_forgets_what_it_only_tried(
    demo_teacher: Path, corpus_file: Path, tmp_path: Path
) -> None:
    stage = prepare(tmp_path / "job", demo_teacher, corpus_file, ["gguf:q4_k_m"], kiosk=768)
    strict = stage.spec.export.model_copy(update={"quantisation_loss_nats": 0.0})
    Stage(stage.spec.model_copy(update={"export": strict}), stage.workspace, stage.events).run()
    manifest = check_folder(stage.variant("kiosk"))
    best = manifest.budget.format
    assert best in ("gguf:mixed", "gguf:q5_k_m", "gguf:q6_k") and manifest.failed_formats == {}
    assert bool(manifest.mix) == (best == "gguf:mixed")
    rows = {row.model: row.runtime_loss_difference for row in manifest.metrics if row.runtime}
    assert set(rows) == {"gguf:q4_k_m", best} and abs(rows[best] or 0) < abs(rows["gguf:q4_k_m"] or 0)
    assert {artifact.format for artifact in manifest.files} == {None, "gguf:q4_k_m", best}
    assert any(f"the device runs {best}" in event.message for event in stage.said(EventType.LOG))


def test_an_attached_adapter_ships_beside_the_weights_for_peft_and_llamacpp(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", new_model().bfloat16())
    data = write_texts(tmp_path / "text.jsonl", 100)
    stage = prepare(tmp_path / "job", teacher, data, ["safetensors", "gguf:f16"], context_tokens=64, watch=32)
    folder = stage.workspace.stage("lora", "watch")
    base = stage.workspace.student("watch")
    adapted = attach(load_model(base, dtype=torch.float32, device="cpu"), rank=4, alpha=8, dropout=0.0, seed=0)
    for parameter in (p for n, p in adapted.named_parameters() if "lora_B" in n):
        parameter.data.fill_(0.05)
    save_adapter(adapted, folder / "adapter")
    merge(base, folder / "adapter", folder / "model")
    spec = parse(JobSpec, stage.spec.model_dump() | {"lora": {"rank": 4, "ship": "attached"}})
    Stage(spec, stage.workspace, stage.events).run()
    manifest = check_folder(stage.variant("watch"))
    assert not manifest.failed_formats and adapter_of(manifest, "gguf") == "adapter/adapter.gguf"
    assert adapter_of(manifest, "safetensors") == "adapter"
    shipped = load_file(stage.variant("watch") / "safetensors" / "model.safetensors")
    assert all(torch.equal(value, shipped[name]) for name, value in load_file(base / "model.safetensors").items())
    rows = {row.model: row for row in manifest.metrics if row.runtime}
    assert list(rows) == ["safetensors", "gguf:f16", "safetensors with adapter", "gguf:f16 with adapter"]
    assert abs(rows["gguf:f16 with adapter"].runtime_loss_difference or 1) < 0.01
    assert rows["gguf:f16 with adapter"].held_out_loss != pytest.approx(rows["gguf:f16"].held_out_loss, abs=0.01)
    weights, beside = (stage.variant("watch") / name for name in ("watch-f16.gguf", "adapter/adapter.gguf"))
    size = weights.stat().st_size + beside.stat().st_size
    assert manifest.budget.adapter_rank == 4
    assert size <= manifest.budget.used_bytes(families()["llama"], manifest.shape) - manifest.shape.kv_cache_bytes(64)
    tight = manifest.model_copy(update={"budget": manifest.budget.model_copy(update={"max_bytes": size})})
    (measured,) = measure(stage.variant("watch"), tight, ["gguf:f16"], texts=(), threads=1, context_tokens=64)
    assert measured.metrics.model == "gguf:f16 with adapter" and measured.metrics.file_bytes == size
    assert measured.over_budget[0].startswith("file, adapter and KV cache at 64 tokens take")
    (served,) = [offer for offer in [open_variant(stage.variant("watch"))] if offer.adapter is not None]
    assert served.adapter == stage.variant("watch") / "adapter" / "adapter.gguf"
