from dataclasses import replace

import pytest

from foundry.engine.export.exam import Exam
from foundry.engine.export.runtime import Answers, Continuation, Questions
from foundry.engine.export.verify import compare_answers
from foundry.errors import ExportFailed

TOKENS = 400
EXAM = Exam(
    questions=Questions(model="", texts=["a b"], prompts=[[1]], passages=[list(range(TOKENS + 1))]),
    counted=[[False] * (TOKENS // 2) + [True] * (TOKENS // 2)],
    text_bytes=1000,
)
REFERENCE = Answers(
    runtime="transformers",
    load_ms=1.0,
    peak_memory_bytes=1,
    context_tokens=512,
    token_ids=[[0, 5, 6]],
    bare_token_ids=[[5, 6]],
    texts_back=["a b"],
    continuations=[Continuation(tokens=[7, 8, 9], seconds=[1, 2, 3], margins=[1.0, 0.01, 1.0])],
    losses=[[2.0] * (TOKENS // 2) + [3.0] * (TOKENS // 2)],
    likeliest=[[1] * TOKENS],
)


def with_losses(difference: float) -> Answers:
    return replace(REFERENCE, losses=[[loss + difference for loss in REFERENCE.losses[0]]])


def continuing(*tokens: int) -> Answers:
    return replace(REFERENCE, continuations=[replace(REFERENCE.continuations[0], tokens=list(tokens))])


def test_compare_accepts_the_same_answers_and_averages_what_counts() -> None:
    findings = compare_answers("gguf:f16", REFERENCE, REFERENCE, EXAM)
    assert (findings.held_out_loss, findings.tokens, findings.greedy_tokens) == (3.0, TOKENS // 2, 3)
    assert (findings.loss_difference, findings.top1_ratio) == (0.0, 1.0)


@pytest.mark.parametrize("field", ["token_ids", "bare_token_ids"])
def test_compare_refuses_other_tokens_and_shows_them(field: str) -> None:
    ids = getattr(REFERENCE, field)[0]
    answers = replace(REFERENCE, **{field: [[*ids[:-1], 4]]})
    compare_answers("gguf:q4_k_m", answers, REFERENCE, EXAM, excused=lambda text: text == "a b")
    with pytest.raises(ExportFailed, match=r"'a b' into other tokens.*\[4\] where \[6\]"):
        compare_answers("gguf:q4_k_m", answers, REFERENCE, EXAM)


def test_compare_refuses_tokens_that_are_not_the_text_again_where_transformers_gives_it_back() -> None:
    for same in ("a b", " a b"):
        compare_answers("gguf:f16", replace(REFERENCE, texts_back=[same]), REFERENCE, EXAM)
    lossy = replace(REFERENCE, texts_back=["a  b"])
    compare_answers("gguf:f16", lossy, lossy, EXAM)
    compare_answers("gguf:f16", lossy, REFERENCE, EXAM, excused=lambda text: text == "a b")
    with pytest.raises(ExportFailed, match=r"makes 'a  b' of the tokens of 'a b'"):
        compare_answers("gguf:f16", lossy, REFERENCE, EXAM)


def test_compare_refuses_another_greedy_token_in_an_exact_format() -> None:
    with pytest.raises(ExportFailed, match=r"from token 0 on: 1 where transformers has 7, which leads by 1\.000 nats"):
        compare_answers("gguf:f16", continuing(1, 8, 9), REFERENCE, EXAM)


def test_compare_accepts_the_second_token_at_a_tie_but_no_third() -> None:
    assert compare_answers("gguf:f16", continuing(7, 2, 4), REFERENCE, EXAM).greedy_tokens == 1
    with pytest.raises(ExportFailed, match="from token 1 on"):
        compare_answers("gguf:f16", continuing(7, 4, 4), REFERENCE, EXAM)


def test_compare_counts_but_forgives_other_greedy_tokens_in_a_quantised_format() -> None:
    assert compare_answers("gguf:q4_k_m", continuing(1, 8, 9), REFERENCE, EXAM).greedy_tokens == 0


@pytest.mark.parametrize(
    ("form", "difference", "passes"),
    [
        ("gguf:f16", 0.001, True), ("gguf:f16", 0.01, False), ("gguf:f16", -0.01, False),
        ("gguf:q8_0", 0.01, True), ("gguf:q8_0", 0.03, False), ("gguf:q4_k_m", 0.2, True), ("gguf:q4_k_m", 0.3, False),
    ],
)  # fmt: skip
def test_compare_holds_the_loss_to_the_formats_bound(form: str, difference: float, passes: bool) -> None:
    if passes:
        assert compare_answers(form, with_losses(difference), REFERENCE, EXAM).loss_difference == pytest.approx(
            difference
        )
    else:
        with pytest.raises(ExportFailed, match="held-out loss differs by"):
            compare_answers(form, with_losses(difference), REFERENCE, EXAM)


def test_compare_refuses_other_likeliest_tokens() -> None:
    answers = replace(REFERENCE, likeliest=[[1] * 340 + [2] * 60])
    assert compare_answers("gguf:q8_0", answers, REFERENCE, EXAM).top1_ratio == 0.85
    with pytest.raises(ExportFailed, match=r"at 85\.0% of the positions; 97\.0% are expected of gguf:f16"):
        compare_answers("gguf:f16", answers, REFERENCE, EXAM)


def test_compare_refuses_a_loss_that_is_not_a_number() -> None:
    with pytest.raises(ExportFailed, match="not a finite number"):
        compare_answers("gguf:q4_k_m", with_losses(float("nan")), REFERENCE, EXAM)
