"""A document as tokens, with a mask of those that count for the loss.

All of a text counts, the completion of a prompt, the answers of a chat.

T: tokens of a document.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from foundry.errors import InvalidData
from foundry.intake.documents import Document


class Encoded(NamedTuple):
    """One document as tokens."""

    ids_T: np.ndarray
    counted_T: np.ndarray
    """Whether predicting this token counts."""
    bytes_T: np.ndarray
    """UTF-8 bytes of text that this token adds; 0 for special tokens."""
    may_be_cut: bool
    """Plain text may go on in the next row; an answer without its prompt teaches little."""
    document: int = 0
    """Its place among the documents that were encoded together."""

    def part(self, start: int, end: int) -> "Encoded":
        """Tokens from `start` to before `end`."""
        tokens = slice(start, end)
        return self._replace(ids_T=self.ids_T[tokens], counted_T=self.counted_T[tokens], bytes_T=self.bytes_T[tokens])


def encode(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """Each document as tokens, its end marked by EOS where the tokenizer has one."""
    for place, document in enumerate(documents):
        yield _encode(document, tokenizer)._replace(document=place)


def _encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    text, spans = _render(document, tokenizer)
    # A chat template writes its own special tokens; everything else gets the tokenizer's.
    tokens = tokenizer(
        text, add_special_tokens=document.messages is None, return_offsets_mapping=True, return_attention_mask=False,
        verbose=False,
    )  # fmt: skip
    ids_T = np.asarray(tokens["input_ids"], dtype=np.int32)
    offsets = np.asarray(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    starts_T, ends_T = offsets[:, 0], offsets[:, 1]
    # A token on the border of prompt and answer holds some of the answer, so it counts.
    counted_T = np.zeros(len(ids_T), dtype=bool)
    for start, end in spans:
        counted_T |= (starts_T < end) & (ends_T > start)
    # A character may take several tokens that all report its offsets: only the first of them adds its bytes.
    reach_T = np.maximum.accumulate(ends_T, dtype=np.int64)
    bytes_T = np.diff(_bytes_before(text)[reach_T], prepend=0)
    end_id = tokenizer.eos_token_id
    if end_id is not None and not (len(ids_T) and ids_T[-1] == end_id):
        ids_T, counted_T, bytes_T = (
            np.append(ids_T, np.int32(end_id)),
            np.append(counted_T, True),
            np.append(bytes_T, 0),
        )
    return Encoded(ids_T, counted_T, bytes_T, may_be_cut=document.text is not None)


def _bytes_before(text: str) -> np.ndarray:
    """UTF-8 bytes of `text[:i]` for every i from 0 to its length."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])


def _render(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """The document as text, and the character spans that count for the loss."""
    if document.text is not None:
        return document.text, [(0, len(document.text))]
    if document.messages is not None:
        return _render_chat(document, tokenizer)
    prompt, completion = document.prompt or "", document.completion or ""
    return prompt + completion, [(len(prompt), len(prompt) + len(completion))]


def _render_chat(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """A chat through the tokenizer's own template (which transformers runs in a sandbox); the answers count.

    An answer is what the template adds to the conversation before it. Templates that rewrite earlier turns have no such
    prefix; there the answer's own text is looked for.
    """
    if not tokenizer.chat_template:
        raise InvalidData(
            "the data holds chats (`messages`) but the teacher's tokenizer has no chat template; give documents as "
            "{prompt, completion} or {text}, or save a chat_template.jinja beside the teacher"
        )
    messages = [{"role": message.role, "content": message.content} for message in document.messages or ()]
    try:
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
        spans: list[tuple[int, int]] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = str(tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True))
            after = str(tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False))
            spans.append(_answer_span(whole, before, after, message["content"], spans[-1][1] if spans else 0))
    except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InvalidData(f"the teacher's chat template refuses document {document.key}: {error}") from error
    return whole, spans


def _answer_span(whole: str, before: str, after: str, answer: str, start: int) -> tuple[int, int]:
    if after.startswith(before) and whole.startswith(after):
        return len(before), len(after)
    found = whole.find(answer.strip(), start)
    return (found, found + len(answer.strip())) if found >= 0 else (start, start)
