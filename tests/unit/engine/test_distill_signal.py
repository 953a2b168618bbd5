"""A saved signal says what the teacher says, to the bits that are kept; it resumes, and refuses another's place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import pack
from foundry.engine.distill import signal
from foundry.engine.distill.objectives import Goal, match_saved, match_teacher
from foundry.engine.distill.signal import Origin, SavedSignal, text_sha256
from foundry.engine.distill.stage import distill
from foundry.engine.packed import Packed
from foundry.engine.workspace import read_json
from foundry.errors import SignalMismatch
from foundry.intake.documents import Document
from foundry.spec.lifecycle import EventType
from tests import tiny
from tests.unit.engine.conftest import Heard, MakeWorkspace
from tests.unit.engine.test_distill_options import learner_with

VOCABULARY = 320


@pytest.fixture
def text() -> Packed:
    documents = [
        Document(key=str(n), prompt=tiny.sentence(n, 3), completion=" " + tiny.sentence(n, 5 + n % 7))
        for n in range(40)
    ]
    return pack(documents, tiny.new_tokenizer(), 32, seed=0)


def origin_of(text: Packed, **changes: Any) -> Origin:
    known = {"teacher_sha256": "teacher", "tokenizer_sha256": "tokenizer", "text_sha256": text_sha256(text)}
    return Origin(**(known | {"k": VOCABULARY, "temperature": 1.0} | changes))


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "_FILE_TOKENS", 32 * 5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_saved_signal_of_all_tokens_gives_the_gradients_of_the_live_teacher(
    text: Packed, context: RunContext, tmp_path: Path, temperature: float
) -> None:
    teacher, goal = tiny.new_model(seed=1), Goal(temperature=temperature, cross_entropy_weight=0.3)
    saved = SavedSignal(tmp_path, origin_of(text, temperature=temperature), text)
    saved.capture(teacher, "distill", context)
    batch = text.batch([7, 0, 12])
    found = []
    for objective in (match_teacher(teacher, goal, context), match_saved(saved, goal, context)):
        learner = learner_with(context)
        loss = learner.accumulate(batch, objective(batch, 1.0))
        found.append((loss, [p.grad for p in learner.model.parameters()]))
    (live, live_gradients), (kept, kept_gradients) = found
    # A log probability of float16 is wrong by at most one part in 2048.
    assert kept == pytest.approx(live, rel=1e-3)
    for one, other in zip(live_gradients, kept_gradients, strict=True):
        assert one is not None and other is not None
        assert (one - other).abs().max() <= 2e-3 * one.abs().max()


def test_saved_signal_is_made_file_by_file_and_goes_on_where_it_stopped(
    text: Packed, context: RunContext, heard: Heard, tmp_path: Path
) -> None:
    origin, teacher = origin_of(text, k=4), tiny.new_model(seed=1)
    heard.stop_after = 2
    with pytest.raises(Stopped):
        SavedSignal(tmp_path, origin, text).capture(teacher, "distill", context)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(first) == 2
    heard.stop_after = None
    (tmp_path / sorted(first)[0]).write_bytes(b"damaged")
    saved = SavedSignal(tmp_path, origin, text)
    saved.capture(teacher, "distill", context)
    assert (tmp_path / sorted(first)[1]).stat().st_mtime_ns == first[sorted(first)[1]]
    said = saved.of(range(len(text)), context.device)
    assert said.ids_TK.shape == (text.counted_tokens, 4)
    total_T = said.log_TK.exp().sum(dim=1) + said.log_rest_T.exp()
    torch.testing.assert_close(total_T, torch.ones_like(total_T), rtol=0, atol=2e-3)
    said_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert said_bytes < text.counted_tokens * (4 * (2 + 2) + 2) + 400 * len(list(tmp_path.iterdir()))


@pytest.mark.parametrize(
    "change", [{"teacher_sha256": "b"}, {"tokenizer_sha256": "b"}, {"text_sha256": "b"}, {"k": 3}, {"temperature": 2.0}]
)
def test_saved_signal_of_something_else_is_refused_by_name(
    change: dict[str, Any], text: Packed, tmp_path: Path
) -> None:
    SavedSignal(tmp_path, origin_of(text), text)
    with pytest.raises(SignalMismatch, match=next(iter(change)).removesuffix("_sha256")) as caught:
        SavedSignal(tmp_path, replace(origin_of(text), **change), text)
    assert caught.value.pointer == "/distill/signal"


def test_distill_learns_from_a_saved_signal_and_removes_it_at_the_end(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    config = {"tokens": 8192, "batch_tokens": 512, "learning_rate": 3e-3, "signal": {"kind": "top_k", "k": 16}}
    spec, workspace = make_workspace(distill=config)
    distill(spec, workspace, context)
    rows = read_json(workspace.stage("distill", "small") / "history.json")["rows"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    assert any("likeliest" in event.message for event in heard.of(EventType.LOG))
    assert not (workspace.stage("distill") / "signal").exists()
