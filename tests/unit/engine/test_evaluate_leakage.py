"""Held-out text that training text gives away."""

import pytest

from foundry.engine.context import Stopped
from foundry.engine.evaluate.leakage import find_leaks
from foundry.intake.documents import Document

WORDS = ("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heath", "inlet", "jetty", "knoll", "lemon")


def words(seed: int, count: int = 40) -> list[str]:
    return [f"{WORDS[(seed * 5 + i * i) % len(WORDS)]}{(seed * 31 + i * 7) % 97}" for i in range(count)]


def document(key: str, text: str) -> Document:
    return Document(key=key, text=text)


HELD_OUT = [document(f"h{n}", " ".join(words(n))) for n in range(20)]


def test_a_planted_copy_is_found_when_only_case_and_spaces_differ() -> None:
    copy = document("other id", (HELD_OUT[3].text or "").upper().replace(" ", "\n  "))
    checked = find_leaks(HELD_OUT, [document("t", " ".join(words(99))), copy])
    assert [(leak.key, leak.share) for leak in checked.leaks] == [("h3", 1.0)]
    assert [d.key for d in checked.clean] == [d.key for d in HELD_OUT if d.key != "h3"]


def test_a_planted_part_is_found_when_it_is_most_of_the_document() -> None:
    part = document("t", "new words before " + " ".join(words(7)[4:]) + " and after")
    (leak,) = find_leaks(HELD_OUT, [part]).leaks
    assert leak.key == "h7"
    assert leak.share == pytest.approx(29 / 33)


def test_a_short_quotation_is_no_leak() -> None:
    quoted = document("t", "as was said, " + " ".join(words(7)[:12]))
    assert not find_leaks(HELD_OUT, [quoted]).leaks


def test_a_form_that_all_documents_share_is_no_leak() -> None:
    form = " ".join(words(50, 60))
    held_out = [document(f"h{n}", f"{form} {' '.join(words(n, 12))}") for n in range(20)]
    train = [document("t", f"{form} {' '.join(words(70, 12))}")]
    assert not find_leaks(held_out, train).leaks
    assert [leak.key for leak in find_leaks(held_out, [*train, held_out[5]]).leaks] == ["h5"]


def test_a_pair_is_compared_as_a_whole_when_answers_are_alike() -> None:
    held_out = [Document(key="h", prompt="Is amber a stone?", completion="no")]
    assert not find_leaks(held_out, [Document(key="t", prompt="Is pearl a plant?", completion="no")]).leaks
    assert find_leaks(held_out, [Document(key="t", prompt="is amber a  stone?", completion="No")]).leaks


def test_the_search_ends_when_it_is_stopped() -> None:
    with pytest.raises(Stopped):
        find_leaks(HELD_OUT, HELD_OUT, should_stop=lambda: True)
