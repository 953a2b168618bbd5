"""What models answer to held-out prompts: matched with the completion where there is one right answer, shown otherwise.

B: prompts of a batch, S: tokens.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.intake.documents import Document

MOST_QUESTIONS = 128
ANSWER_TOKENS = 48
"""A longer completion is never matched word for word: it is shown, not scored."""
_PROMPT_TOKENS = 48
"""What is shown of a plain text before a model goes on."""
_BATCH = 16
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The beginning of a held-out document, and how the document goes on."""

    key: str
    text: str
    ids_S: Sequence[int]
    reference: str


def answerable(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, context_tokens: int) -> list[Prompt]:
    """Prompts with a completion that is short enough to be the one right answer and fits the context."""
    found: list[Prompt] = []
    for document in documents:
        if len(found) == MOST_QUESTIONS:
            break
        if document.prompt is None or document.completion is None:
            continue
        ids_S = _ids(tokenizer, document.prompt, special=True)
        answer = _ids(tokenizer, document.completion, special=False)
        if len(answer) <= ANSWER_TOKENS and len(ids_S) + ANSWER_TOKENS <= context_tokens:
            found.append(Prompt(key=document.key, text=document.prompt, ids_S=ids_S, reference=document.completion))
    return found


def prompts_of(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, context_tokens: int, most: int
) -> list[Prompt]:
    """A few documents to look at: the question of a pair or a chat, the first part of a text."""
    found = [_prompt(document, tokenizer) for document in documents[: 8 * most]]
    fitting = [p for p in found if p and p.reference.strip() and len(p.ids_S) < context_tokens]
    return fitting[:most]


def _prompt(document: Document, tokenizer: PreTrainedTokenizerBase) -> Prompt | None:
    if document.text is not None:
        ids = _ids(tokenizer, document.text, special=True)
        head = ids[: min(_PROMPT_TOKENS, len(ids) // 2)]
        rest = ids[len(head) : len(head) + ANSWER_TOKENS]
        if not head or not rest:
            return None
        text, reference = _decode(tokenizer, head), _decode(tokenizer, rest)
        return Prompt(key=document.key, text=text, ids_S=head, reference=reference)
    if document.messages is not None:
        answers = [turn for turn, message in enumerate(document.messages) if message.role == "assistant"]
        if not answers:
            return None
        before = [{"role": m.role, "content": m.content} for m in document.messages[: answers[-1]]]
        try:
            text = str(tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True))
        except TemplateError:  # of a conversation that begins with an answer, for example
            return None
        ids = _ids(tokenizer, text, special=False)
        return Prompt(key=document.key, text=text, ids_S=ids, reference=document.messages[answers[-1]].content)
    text = document.prompt or ""
    ids = _ids(tokenizer, text, special=True)
    return Prompt(key=document.key, text=text, ids_S=ids, reference=document.completion or "")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    ids: list[int] = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    if special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        return ids[:-1]  # some tokenizers end every text; a prompt goes on
    return ids


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], context_tokens: int,
    context: RunContext,
) -> list[str]:  # fmt: skip
    """The greedy continuation of every prompt, up to `ANSWER_TOKENS` or the end of the context.

    Raises `Stopped` between batches.
    """
    found: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].ids_S))
    for start in range(0, len(order), _BATCH):
        context.heed()
        places = order[start : start + _BATCH]
        longest = max(len(prompts[place].ids_S) for place in places)
        room = min(ANSWER_TOKENS, context_tokens - longest)
        made_BS = continued(model, tokenizer, [prompts[place].ids_S for place in places], room)
        found |= {place: _decode(tokenizer, ids) for place, ids in zip(places, made_BS, strict=True)}
    return [found[place] for place in range(len(prompts))]


def continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], room: int, *,
    temperature: float | None = None, top_p: float | None = None,
) -> list[list[int]]:  # fmt: skip
    """At most `room` tokens after each prompt: the likeliest, or with a temperature a sample of the likeliest `top_p`.

    A sample depends on torch's own generator. What ended before the others is filled with padding.
    """
    longest = max(map(len, prompts))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    ids_BS = torch.full((len(prompts), longest), padding)
    mask_BS = torch.zeros_like(ids_BS)
    for row, ids in enumerate(prompts):
        ids_BS[row, longest - len(ids) :] = torch.as_tensor(ids)
        mask_BS[row, longest - len(ids) :] = 1
    made_BS = model.generate(
        input_ids=ids_BS.to(model.device), attention_mask=mask_BS.to(model.device), max_new_tokens=room,
        do_sample=temperature is not None, temperature=temperature, top_p=top_p,
        top_k=None if temperature is None else 0, num_beams=1, pad_token_id=padding,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return [row[longest:].tolist() for row in made_BS]


def exact_match(answer: str, reference: str) -> float:
    """1 when both say the same words in the same order, else 0."""
    return float(_normal(answer) == _normal(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, as often as each stands there (SQuAD, 1606.05250)."""
    mine, theirs = _normal(answer).split(), _normal(reference).split()
    if not mine or not theirs:
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs))


def _normal(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())
