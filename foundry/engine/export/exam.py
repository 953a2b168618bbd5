"""What every file of a variant is asked: text that is hard to tokenise, prompts to continue, held-out text to score.

T: tokens of a passage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from foundry.engine.corpus import Corpus
from foundry.engine.encode import Encoded, encode
from foundry.engine.export.runtime import Answers, Questions
from foundry.errors import InvalidData
from foundry.intake.documents import Document
from foundry.spec.job import JobSpec

HARD_TEXTS = (
    "Hello world", " leading space", "trailing space ", "  two  spaces  ", "\n\n\n", "      \n   \n x", "x\r\ny\rz",
    "\t\tif x:\r\n    return {'a': 1.5e-3}  # no", "__init__ snake_case camelCase()[]{}<>", "!!! ??? ... --- *** ===",
    "I'LL don't WE'VE he'S 's ’s", "1234567890 3.14159 ٣٤٥ ½ Ⅷ", "www.example.com/?q=%20&x=y#z", "a" * 60,
    "日本語のテキスト、中文文本。한국어", "ไทย हिन्दी বাংলা", "العربية עברית \u200f\u200e", "e\u0301 n\u0303 Å ﬁ",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️", "𝒜𝓫 𐍈 𠜎 ǅ ʰ ª", "\x00\x01\x02\x07\x08", "\x0b\x0c\x1b\x7f", "\x1c\x1d\x1e\x1f",
    "\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000x", "a\xa0b c\u3000d", "\u200b\u200d\u2060",
    "\ufeff\ufffd\ue000\U0010fffd",
)  # fmt: skip
"""Where tokenisers differ: white space, contractions, digits, scripts without spaces, marks, emoji, control codes."""
_SPECIAL_TOKENS = 8
_SCORED_TOKENS = 4096
"""Each file is scored on this much text. What is judged is the mean difference to transformers on the same tokens,
which varies far less than a loss does; the quality itself is measured on more text by the evaluate stage."""
PASSAGE_TOKENS = 512
_PROMPTS, _DECIDED_PROMPTS, _PROMPT_TOKENS = 6, 3, 24
_SPEED_PROMPT_TOKENS, _SPEED_DECODE_TOKENS = 128, 32


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The questions, and which of the answers count for the loss."""

    questions: Questions
    counted: Sequence[Sequence[bool]]
    """For each passage, whether its second, third ... token counts: those of a prompt do not."""
    text_bytes: int
    """UTF-8 bytes of the counted tokens."""


def make_exam(spec: JobSpec, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context_tokens: int) -> Exam:
    """Questions from the held-out side of the data, none longer than the context that the device has room for."""
    taken = _held_out(corpus, tokenizer, min(PASSAGE_TOKENS, context_tokens), min(_SCORED_TOKENS, spec.evaluate.tokens))
    passages = [piece.ids_T.tolist() for piece in taken]
    continued = max(1, min(spec.export.parity_tokens, context_tokens - 1))
    prompt = min(_PROMPT_TOKENS, context_tokens - continued)
    decoded = min(_SPEED_DECODE_TOKENS, context_tokens // 2)
    questions = Questions(
        model="",
        context_tokens=context_tokens,
        texts=hard_texts(tokenizer),
        prompts=_prompts(passages, prompt),
        continue_tokens=continued,
        passages=passages,
        speed_prompt_tokens=min(_SPEED_PROMPT_TOKENS, context_tokens - decoded),
        speed_decode_tokens=decoded,
    )
    return Exam(
        questions=questions,
        counted=[piece.counted_T[1:].tolist() for piece in taken],
        text_bytes=sum(int(piece.bytes_T[1:][piece.counted_T[1:]].sum()) for piece in taken),
    )


def decided(exam: Exam, reference: Answers) -> tuple[Exam, Answers]:
    """Keep the prompts on which the reference is surest at every step.

    Where two tokens are a tie, rounding decides, and no runtime can be held to the same continuation.
    """
    found = reference.continuations
    surest = sorted(range(len(found)), key=lambda prompt: -min(found[prompt].margins))[:_DECIDED_PROMPTS]
    questions = replace(exam.questions, prompts=[exam.questions.prompts[i] for i in surest])
    return replace(exam, questions=questions), replace(reference, continuations=[found[i] for i in surest])


def _prompts(passages: Sequence[Sequence[int]], length: int) -> list[Sequence[int]]:
    """Beginnings of the longest passages, and later parts of them where those are too few."""
    longest = sorted(passages, key=len, reverse=True)
    starts = [(passage, part * len(passage) // _PROMPTS) for part in range(_PROMPTS) for passage in longest]
    return [passage[start : start + length] for passage, start in starts[:_PROMPTS]]


def _held_out(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int, wanted: int) -> list[Encoded]:
    found = pieces(corpus.held_out, tokenizer, length, wanted)
    if not found:
        raise InvalidData("no token of the held-out documents counts for the loss: all are prompts; add completions")
    return found


def pieces(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, length: int, wanted: int
) -> list[Encoded]:
    """Pieces of documents in which something counts: one of each, more only when those are too few."""
    first: list[Encoded] = []
    more: list[Encoded] = []
    for document in encode(documents, tokenizer):
        cut = [document.part(start, start + length) for start in range(0, len(document.ids_T), length)]
        counting = [piece for piece in cut if piece.counted_T[1:].any()]
        first += counting[:1]
        more += counting[1:]
        if sum(len(piece.ids_T) for piece in first) >= wanted:
            break
    found: list[Encoded] = []
    for piece in (*first, *more):
        left = wanted - sum(len(one.ids_T) for one in found)
        if piece.part(0, left).counted_T[1:].any():
            found.append(piece.part(0, left))
    return found


def hard_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The fixed texts, and one in which special tokens stand between words."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()][:_SPECIAL_TOKENS]
    return [*HARD_TEXTS, *(f"a {token}b{token}\n c" for token in special)]
