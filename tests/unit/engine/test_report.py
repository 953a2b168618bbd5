"""The report of a job, made of its workspace: complete, self-contained, and there when the job failed."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from foundry.engine import pipeline
from foundry.engine.context import RunContext
from foundry.engine.energy import processor_joules
from foundry.engine.evaluate.stage import evaluate
from foundry.engine.journal import ATTEMPT, ENDED, FAILED, Entry, Journal
from foundry.engine.report.axes import ticks
from foundry.engine.report.gather import gather
from foundry.engine.report.make import make_report
from foundry.engine.report.spending import seconds_of
from foundry.engine.report.write import page
from foundry.engine.workspace import Inputs, Workspace, write_json
from foundry.errors import InvalidData
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.record import parse
from foundry.spec.report import JobReport
from foundry.spec.target import Budget
from foundry.spec.variant import WITH_ADAPTER, Metrics
from tests import tiny
from tests.unit.engine.conftest import FFN, MakeWorkspace, write_student

_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Every tag is closed where it should be; remembers attributes, headings and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a job that was evaluated and trained, and whose export then failed."""
    folder = tmp_path_factory.mktemp("report")
    teacher, data = tiny.save(folder / "teacher"), tiny.write_texts(folder / "data.jsonl", 150, 40)
    targets = [{"name": target, "max_params": 1000 * ffn} for target, ffn in FFN.items()]
    spec = parse(JobSpec, {"name": "a <b> & c", "teacher": str(teacher), "data": str(data), "targets": targets})
    workspace = Workspace.create(
        folder / "job", spec, Inputs(teacher=str(teacher), data=str(data), data_sha256="of the tests")
    )
    for target, ffn in FFN.items():
        write_student(workspace, target, ffn)
    workspace.finish("prune")
    journal = Journal(workspace)
    silent = RunContext(emit=lambda _: None, device=torch.device("cpu"), dtype=torch.float32, seed=0)
    journal.open(silent)
    heard = replace(silent, emit=journal.hearing(silent.emit))
    heard.report(EventType.STAGE_STARTED, "evaluate started", stage="evaluate")
    evaluate(spec, workspace, heard)
    heard.report(EventType.STAGE_COMPLETED, "evaluate completed", stage="evaluate")
    rows = [{"step": n, "tokens": 100 * n, "loss": 2 - n / 10} for n in range(1, 9)]
    rows += [{"step": n, "tokens": 100 * n, "held_out_loss": 3 - n / 10} for n in (0, 4, 8)]
    history = {"steps": 8, "tokens": 800, "batch_tokens": 100, "sequence_tokens": 64, "epochs": 1, "rows": rows}
    for target in spec.target_names:
        write_json(workspace.stage("distill", target) / "history.json", history)
    heard.report(EventType.STAGE_STARTED, "export started", stage="export")
    heard.report(EventType.WARNING, "gguf:q8_0 is <left> out", level="warning", stage="export")
    journal.note(FAILED, "no format passed its check", level="error")
    journal.close()
    return workspace.root


@pytest.fixture
def ended(made_once: Path, tmp_path: Path) -> Workspace:
    """A copy of it for each test."""
    return Workspace(Path(shutil.copytree(made_once, tmp_path / "job")))


def test_report_of_a_failed_job_says_why_and_shows_all_there_is(ended: Workspace) -> None:
    report = gather(ended)
    assert (report.status, report.reason) == ("failed", "no format passed its check")
    assert [(s.stage, s.status) for s in report.stages] == [("evaluate", "completed"), ("export", "failed")]
    small = report.targets[0]
    assert [row.model for row in small.metrics] == ["teacher", "pruned"]
    assert small.shape is not None and small.shape.ffn == 32 and small.kept is not None and small.kept.ffn_ratio == 0.5
    assert small.samples and set(small.samples[0].answers) == {"teacher", "pruned"}
    assert report.importance is not None and len(report.importance.scores["heads"]) == 2
    assert report.cost.trained_tokens == 800 and report.cost.attempts == 1
    assert [r.message for r in report.remarks if r.stage == "export"] == ["gguf:q8_0 is <left> out"]


def test_a_run_that_fails_leaves_a_report_and_the_error_goes_on(
    make_workspace: MakeWorkspace, context: RunContext, tmp_path: Path
) -> None:
    spec, workspace = make_workspace(
        "short", data=tiny.write_texts(tmp_path / "short.jsonl", 12, 20), formats=["safetensors"]
    )
    (workspace.root / "stages" / "prune" / "done.json").unlink()
    for target in spec.target_names:
        shutil.rmtree(workspace.stage("prune", target))
    with pytest.raises(InvalidData, match="calibration needs"):
        pipeline.run(spec, workspace, context)
    report = parse(JobReport, json.loads((workspace.root / "report" / "report.json").read_text()))
    assert report.status == "failed" and "calibration needs" in (report.reason or "")
    assert [(stage.stage, stage.status) for stage in report.stages] == [("prune", "failed")]


def test_report_comes_as_json_that_reads_back_and_as_markdown(ended: Workspace) -> None:
    page, markdown, document = make_report(ended)
    assert (page.name, page.parent) == ("report.html", ended.root / "report")
    read = parse(JobReport, json.loads(document.read_text()))
    assert read.targets == gather(ended).targets
    text = markdown.read_text()
    assert "| pruned |" in text and "no format passed its check" in text and "seed: 0" in text


def test_page_is_whole_and_asks_nothing_of_any_other_place(ended: Workspace) -> None:
    text = make_report(ended)[0].read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset", "action", "poster")]
    assert not re.search(r"@import|url\(|https?://|//cdn", text)
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_page_shows_a_target_with_the_adapter_that_its_device_loads(ended: Workspace) -> None:
    report = gather(ended)
    rows = tuple(Metrics(model=f"gguf:q8_0{end}", file_bytes=10**6) for end in ("", WITH_ADAPTER))
    budget = Budget(target="small", format="gguf:q8_0", context_tokens=64, max_bytes=10**7, adapter_rank=4)
    target = report.targets[0].model_copy(update={"metrics": rows, "budget": budget})
    assert "<dt>gguf:q8_0 with adapter</dt>" in page(report.model_copy(update={"targets": (target,)}))


def test_every_drawing_says_what_it_is(ended: Workspace) -> None:
    text = make_report(ended)[0].read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 6
    for drawing in drawings:
        assert re.match(r'<svg [^>]*role="img" aria-label="[^"]{10,}"><title>[^<]+</title><desc>[^<]+</desc>', drawing)
        assert "nan" not in drawing and "inf" not in drawing


def test_what_others_wrote_is_text_and_never_markup(ended: Workspace) -> None:
    samples = [{"key": "k", "prompt": "<script>alert(1)</script>", "reference": "a", "answers": {"teacher": "<b>"}}]
    write_json(ended.stage("evaluate", "small") / "samples.json", samples)
    text = make_report(ended)[0].read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text and "is &lt;left&gt; out" in text


def test_report_of_a_workspace_that_has_only_begun_is_made_all_the_same(make_workspace: MakeWorkspace) -> None:
    _, workspace = make_workspace()
    report = gather(workspace)
    assert (report.status, report.stages, report.cost.seconds) == ("unfinished", (), 0)
    Page(make_report(workspace)[0].read_text())


def test_damaged_files_of_a_workspace_are_passed_over(ended: Workspace) -> None:
    (ended.stage("evaluate", "small") / "metrics.json").write_text("[{")
    (ended.stage("prune", "large") / "plan.json").write_text('{"family": 1}')
    with (ended.root / "events.jsonl").open("a") as file:
        file.write('{"at": "2026-')
    small, large = gather(ended).targets
    assert small.metrics == () and large.shape is None


def test_time_between_two_attempts_is_nobodys() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def entry(second: int, kind: str, stage: str = "") -> Entry:
        return Entry(start + timedelta(seconds=second), kind, "", "info", {"stage": stage} if stage else {})

    history = [
        entry(0, ATTEMPT), entry(1, EventType.STAGE_STARTED, "prune"), entry(4, EventType.STAGE_COMPLETED, "prune"),
        entry(4, EventType.STAGE_STARTED, "distill"), entry(9, ENDED), entry(1000, ATTEMPT),
        entry(1001, EventType.STAGE_STARTED, "distill"), entry(1003, EventType.STAGE_COMPLETED, "distill"),
    ]  # fmt: skip
    assert seconds_of(history) == {"prune": 3, "distill": 7}


def test_ticks_are_round_and_within_the_range() -> None:
    assert ticks(0.13, 0.87) == [0.2, 0.4, 0.6, 0.8]
    assert ticks(0, 5e6) == [0, 1e6, 2e6, 3e6, 4e6, 5e6]
    assert ticks(2, 2) == [2]


def test_energy_is_the_sum_over_packages_and_unknown_where_it_is_hidden(tmp_path: Path) -> None:
    assert processor_joules(tmp_path) is None
    for name, value in (("intel-rapl:0", 1_500_000), ("intel-rapl:1", 500_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
    assert processor_joules(tmp_path) == 2.0
