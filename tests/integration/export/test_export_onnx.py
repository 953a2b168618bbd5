"""The demo's teacher in real ONNX Runtime, against transformers on the same weights."""

from pathlib import Path

import pytest

from foundry.engine.export.apart import ONNX, ask
from foundry.engine.export.manifest import format_bytes, onnx_folder
from foundry.engine.export.verify import compare_answers
from foundry.engine.export.writing import Writing
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.formats import header_bytes, parse_format, weight_bytes
from tests.export_questions import about
from tests.families import save_genuine
from tests.integration.export.conftest import Demo
from tests.tiny import new_tokenizer

pytestmark = pytest.mark.integration
SINES_AND_COSINES = 2 * 512 * 16 * 4
"""The tables of the demo's teacher: context x half of a head, float32."""


def test_onnx_scores_as_transformers_does_and_takes_the_bytes_that_were_planned(demo: Demo, tmp_path: Path) -> None:
    form = "onnx:int4"
    writing = Writing(tmp_path, "kiosk", form)
    writing.write(demo.checkpoint, new_tokenizer(), "demo")
    answers = ask(ONNX, about(demo.exam, writing.path))
    findings = compare_answers(form, answers, demo.reference, demo.exam, writing.is_cut_otherwise)
    assert abs(findings.loss_difference) < 0.15 and findings.top1_ratio > 0.8
    planned = weight_bytes(demo.checkpoint.family, demo.checkpoint.shape, parse_format(form)) + SINES_AND_COSINES
    written = format_bytes(tmp_path, form)
    assert written is not None
    assert planned < written < planned + header_bytes(demo.checkpoint.shape, parse_format(form)) + 65_536
    assert writing.path.name == onnx_folder("int4")


def test_a_family_that_the_builder_does_not_know_is_refused_in_its_own_words(tmp_path: Path) -> None:
    save_genuine(tmp_path / "model", "starcoder2")
    writing = Writing(tmp_path, "kiosk", "onnx:fp32")
    with pytest.raises(ExportFailed, match=r"builder of onnxruntime-genai refused it: .*not currently supported"):
        writing.write(open_checkpoint(tmp_path / "model"), new_tokenizer(), "x")
    writing.remove()
    assert not writing.path.exists()
