"""Domain and general text in the ratio asked for; only the domain is measured."""

import json
from pathlib import Path

import pytest

from foundry.engine.context import RunContext
from foundry.engine.distill.text import Texts, read_texts
from foundry.errors import InvalidData
from foundry.spec.lifecycle import EventType
from tests import tiny
from tests.unit.engine.conftest import Heard

DOMAIN, GENERAL = "the cat", "0123456789"


def data(path: Path, domain: int, general: int) -> Path:
    rows = [{"id": f"d{n}", "text": " ".join([DOMAIN] * 30)} for n in range(domain)]
    rows += [{"id": f"g{n}", "text": " ".join([GENERAL] * 12), "general": True} for n in range(general)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, ratio: float | None, context: RunContext, tokens: int = 2048) -> Texts:
    return read_texts("distill", path, tiny.new_tokenizer(), 32, tokens, 320, 0, context, ratio)


def share_of_general(texts: Texts) -> float:
    digits = set(tiny.new_tokenizer().encode("0123456789", add_special_tokens=False))
    general = sum(bool(digits & set(row)) for row in texts.train.ids_NS.tolist())
    return general / len(texts.train)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_training_text_has_the_share_of_general_text_that_was_asked_for(
    ratio: float, context: RunContext, tmp_path: Path
) -> None:
    texts = read(data(tmp_path / "data.jsonl", 100, 100), ratio, context)
    assert len(texts.train) == 64
    assert share_of_general(texts) == pytest.approx(ratio, abs=0.02)


def test_ratio_holds_when_there_is_little_domain_text(context: RunContext, tmp_path: Path) -> None:
    texts = read(data(tmp_path / "data.jsonl", 12, 400), 0.5, context, tokens=100_000)
    assert share_of_general(texts) == pytest.approx(0.5, abs=0.02)


def test_general_text_is_trained_on_as_it_comes_by_default_and_never_held_out(
    context: RunContext, tmp_path: Path
) -> None:
    texts = read(data(tmp_path / "data.jsonl", 100, 100), None, context, tokens=100_000)
    assert 0.4 < share_of_general(texts) < 0.9
    held_out = tiny.new_tokenizer().decode(texts.held_out.ids_NS.flatten().tolist())
    assert DOMAIN in held_out and "0" not in held_out


def test_too_little_general_text_is_said(context: RunContext, heard: Heard, tmp_path: Path) -> None:
    read(data(tmp_path / "data.jsonl", 100, 3), 0.5, context)
    (warning,) = heard.of(EventType.WARNING)
    assert "less than the 50% asked for" in warning.message


def test_a_ratio_without_general_text_is_refused_with_its_field(context: RunContext, tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r'has no general text .* "general": true') as caught:
        read(data(tmp_path / "data.jsonl", 100, 0), 0.2, context)
    assert caught.value.pointer == "/distill/general_ratio"
