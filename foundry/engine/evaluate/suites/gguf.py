"""A GGUF as the harness asks it: llama.cpp computes the logits, the tokenizer is the one that ships beside the file.

Requests are put in an order in which the next one begins as the last did (few-shot examples, the question of several
answers), and what they share is computed once. T: tokens, V: vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.evaluate.suites.harness import unseen
from foundry.engine.export.llamacpp import Llama, LlamaError
from foundry.errors import DamagedCheckpoint

_ANSWER_TOKENS = 256
"""The harness's own bound for a task that names none."""
_STOPS_EVERY = 8
"""Tokens between two looks for a stop sequence: decoding the answer costs more the longer it is."""


class GgufModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """One file, open until `close`. The same rules as the harness's class for transformers: what is cut off on the
    left, where an answer ends, which token stands before a text that has no context."""

    def __init__(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, context: RunContext, *, threads: int, most_tokens: int
    ) -> None:
        """Raises `DamagedCheckpoint` when llama.cpp does not open the file."""
        super().__init__()
        self.tokenizer = tokenizer
        self._run = context
        self._fed_T: list[int] = []
        try:
            self._llama = Llama(str(path), threads=threads, context_tokens=most_tokens)
        except LlamaError as error:
            raise DamagedCheckpoint(f"llama.cpp does not open {path.name}: {error}", pointer="/format") from error
        self.max_length = self._llama.usable_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        return int(self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.eot_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **given))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or unseen())

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        for place in sorted(range(len(requests)), key=lambda place: (*requests[place][1], *requests[place][2])):
            asked, context_T, answer_T = requests[place]
            found[place] = self._score(context_T, answer_T)
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, found[place])
        return [found[place] for place in range(len(requests))]

    def _score(self, context_T: Sequence[int], answer_T: Sequence[int]) -> tuple[float, bool]:
        """The log probability of the answer in nats, and whether greedy decoding would give it."""
        if not answer_T:  # the answer is part of the context's last token
            return 0.0, True
        whole_T = [*context_T, *answer_T][-(self.max_length + 1) :]
        answer_T = whole_T[-min(len(answer_T), len(whole_T) - 1) :]
        total, greedy = 0.0, True
        for logits_V, token in zip(self._feed(whole_T[:-1], len(answer_T)), answer_T, strict=True):
            largest = int(logits_V.argmax())
            shifted_V = logits_V.astype(np.float64) - logits_V[largest]
            total += float(shifted_V[token] - np.log(np.exp(shifted_V).sum()))
            greedy = greedy and largest == token
        return total, greedy

    def _feed(self, tokens_T: list[int], wanted: int) -> Iterator[np.ndarray]:
        """The logits at the last `wanted` positions; tokens that were fed before at the same places stay."""
        self._run.heed()
        head = len(tokens_T) - wanted
        shared = 0
        while shared < min(head, len(self._fed_T)) and self._fed_T[shared] == tokens_T[shared]:
            shared += 1
        self._fed_T = []  # nothing is known of the cache until all is fed
        self._llama.forget_from(shared)
        if head > shared:
            for _ in self._llama.logits(tokens_T[shared:head], start=shared):
                pass
        yield from self._llama.logits(tokens_T[head:], start=head, all_positions=True)
        self._fed_T = list(tokens_T)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            totals.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        eos = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        answers = []
        for context, given in (request.args for request in requests):
            settings = normalize_gen_kwargs(dict(given), _ANSWER_TOKENS)
            stops = handle_stop_sequences(settings.get("until"), eos=eos)
            said = self._continue(context, stops, int(settings["max_gen_toks"]))
            answers.append(postprocess_generated_text(said, stops, None))
            self.cache_hook.add_partial("generate_until", (context, given), answers[-1])
        return answers

    def _continue(self, context: str, stops: Sequence[str], most: int) -> str:
        """Greedy tokens until one of the stops, the end of the text, or `most`."""
        room = self.max_length - most
        if room < 1:
            raise ValueError(f"the task asks for {most} tokens, the model's context holds {self.max_length}")
        tokens_T = self.tok_encode(context)[-room:]
        made_T: list[int] = []
        while len(made_T) < most:
            [logits_V] = self._feed(tokens_T + made_T, 1)
            made_T.append(int(logits_V.argmax()))
            ended = made_T[-1] == self.eot_token_id
            if ended or len(made_T) % _STOPS_EVERY == 0:
                said = self.tokenizer.decode(made_T, skip_special_tokens=True)
                if ended or any(stop and stop in said for stop in stops):
                    return str(said)
        return str(self.tokenizer.decode(made_T, skip_special_tokens=True))
