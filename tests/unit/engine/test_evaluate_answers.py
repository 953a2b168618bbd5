"""What a model answers, and how an answer is matched."""

import pytest
import torch

from foundry.engine.context import RunContext
from foundry.engine.evaluate.answers import ANSWER_TOKENS, answer, answerable, exact_match, f1, prompts_of
from foundry.intake.documents import Document, Message
from tests import tiny


@pytest.mark.parametrize(
    ("said", "reference", "exact", "overlap"),
    [
        ("The red cat.", "red cat", 1.0, 1.0),
        ("a red dog", "the red cat", 0.0, 0.5),
        ("red red cat", "red cat", 0.0, 0.8),
        ("", "red cat", 0.0, 0.0),
        ("the", "an", 1.0, 1.0),
    ],
    ids=["articles", "half", "repeated", "empty", "nothing left"],
)
def test_answers_are_matched_as_squad_does(said: str, reference: str, exact: float, overlap: float) -> None:
    assert exact_match(said, reference) == exact
    assert f1(said, reference) == pytest.approx(overlap)


def test_answers_of_a_batch_equal_those_of_each_prompt_alone(context: RunContext) -> None:
    model, tokenizer = tiny.new_model(), tiny.new_tokenizer()
    documents = [Document(key=f"d{n}", prompt=tiny.sentence(n, 2 + n), completion=" the cat") for n in range(4)]
    prompts = answerable(documents, tokenizer, 96)
    batched = answer(model, tokenizer, prompts, 60, context)
    for prompt, said in zip(prompts, batched, strict=True):
        ids = torch.tensor([list(prompt.ids_S)])
        room = min(ANSWER_TOKENS, 60 - max(len(p.ids_S) for p in prompts))
        for _ in range(room):
            with torch.no_grad():
                following = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
            if int(following) == tokenizer.eos_token_id:
                break
        assert said == tokenizer.decode(ids[0, len(prompt.ids_S) :], skip_special_tokens=True)


def test_prompts_show_the_last_question_of_a_chat_and_the_first_half_of_a_short_text() -> None:
    tokenizer = tiny.new_tokenizer(chat=True)
    chat = Document(
        key="c",
        messages=(
            Message("user", "hello"), Message("assistant", "yes"), Message("user", "the cat?"),
            Message("assistant", "on a mat"),
        ),
    )  # fmt: skip
    shown, text = prompts_of([chat, Document(key="t", text=tiny.sentence(1, 10))], tokenizer, 128, most=2)
    assert shown.reference == "on a mat" and shown.text.endswith("the cat?<|endoftext|><|assistant|>")
    assert text.text + text.reference == tiny.sentence(1, 10)


def test_only_short_completions_have_one_right_answer() -> None:
    tokenizer = tiny.new_tokenizer()
    long = Document(key="l", prompt="a", completion=tiny.sentence(0, 80))
    assert [p.key for p in answerable([long, Document(key="s", prompt="a", completion=" b")], tokenizer, 64)] == ["s"]
