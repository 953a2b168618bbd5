import json
from pathlib import Path

import pytest

from foundry.engine.corpus import Corpus
from foundry.engine.export.exam import Exam, decided, hard_texts, make_exam
from foundry.engine.export.runtime import Answers, Continuation
from foundry.errors import InvalidData
from foundry.spec.job import JobSpec
from tests.tiny import new_tokenizer, write_texts


def exam_about(path: Path, context_tokens: int = 64, **changes: object) -> Exam:
    spec = JobSpec(teacher="./t", data=str(path), targets=("smartphone",)).model_copy(update=changes)
    return make_exam(spec, Corpus.load(path, new_tokenizer(), seed=0), new_tokenizer(), context_tokens)


@pytest.mark.parametrize("context_tokens", [64, 20, 2])
def test_exam_never_asks_for_more_than_the_context(context_tokens: int, tmp_path: Path) -> None:
    questions = exam_about(write_texts(tmp_path / "text.jsonl"), context_tokens).questions
    assert max(len(passage) for passage in questions.passages) <= context_tokens
    assert all(len(prompt) + questions.continue_tokens <= context_tokens for prompt in questions.prompts)
    assert questions.speed_prompt_tokens + questions.speed_decode_tokens <= context_tokens
    assert min(len(prompt) for prompt in questions.prompts) >= 1 and len(questions.prompts) == 6


def test_exam_asks_about_every_document_before_it_asks_twice_about_one(tmp_path: Path) -> None:
    exam = exam_about(write_texts(tmp_path / "text.jsonl", words=120), 32)
    corpus = Corpus.load(tmp_path / "text.jsonl", new_tokenizer(), seed=0)
    tokenizer = new_tokenizer()
    starts = [tokenizer(document.text)["input_ids"][:32] for document in corpus.held_out]
    assert [list(passage) for passage in exam.questions.passages[: len(starts)]] == starts
    assert len(exam.questions.passages) > len(starts)


def test_exam_counts_completions_and_leaves_prompts_out(tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": "the cat sat on", "completion": " a mat"} for n in range(60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    exam, tokenizer = exam_about(path), new_tokenizer()
    prompt_tokens = len(tokenizer("the cat sat on")["input_ids"])
    assert exam.counted[0][: prompt_tokens - 1] == [False] * (prompt_tokens - 1)
    assert any(exam.counted[0]) and exam.text_bytes == len(" a mat") * len(exam.counted)
    with pytest.raises(InvalidData, match="no token of the held-out documents counts"):
        exam_about(path, context_tokens=1)


def test_exam_keeps_the_prompts_without_ties(tmp_path: Path) -> None:
    exam = exam_about(write_texts(tmp_path / "text.jsonl"))
    smallest = [0.001, 0.5, 0.2, 0.002, 0.9, 0.003]
    said = [Continuation(tokens=[n, n], seconds=[0, 0], margins=[1.0, margin]) for n, margin in enumerate(smallest)]
    reference = Answers(runtime="", load_ms=1, peak_memory_bytes=1, context_tokens=64, continuations=said)
    kept, answers = decided(exam, reference)
    assert [continuation.tokens[0] for continuation in answers.continuations] == [4, 1, 2]
    assert kept.questions.prompts == [exam.questions.prompts[n] for n in (4, 1, 2)]


def test_hard_texts_put_special_tokens_between_words() -> None:
    assert "a <|endoftext|>b<|endoftext|>\n c" in hard_texts(new_tokenizer())
