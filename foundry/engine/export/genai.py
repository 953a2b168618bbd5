"""Opens an ONNX folder in ONNX Runtime and answers the same questions: `python -m foundry.engine.export.genai`.

T: tokens of a sequence, V: vocabulary.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai

from foundry.engine.export.runtime import Answers, Continuation, Questions, peak_memory_bytes, serve


class Genai:
    """A model and its tokenizer, on the processor."""

    def __init__(self, folder: str, *, threads: int, context_tokens: int) -> None:
        config = onnxruntime_genai.Config(folder)
        config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
        self._model = onnxruntime_genai.Model(config)
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
        self.context_tokens = context_tokens
        self.vocabulary_tokens: int = self.logits(self.generator(), [0], all_positions=False).shape[-1]

    def generator(self) -> Any:
        """A new, empty sequence."""
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self.context_tokens, do_sample=False)
        return onnxruntime_genai.Generator(self._model, parameters)

    def tokenize(self, text: str) -> list[int]:
        """Token ids, without special tokens but those that stand in the text by their names."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def text_of(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return str(self._tokenizer.decode(np.array(ids, dtype=np.int32)))

    def logits(self, generator: Any, ids_T: Sequence[int], *, all_positions: bool) -> np.ndarray:
        """Feed tokens; the logits [T, V] at each of them, or [1, V] at the last."""
        generator.append_tokens(np.array([list(ids_T)], dtype=np.int32))
        found: np.ndarray = generator.get_output("logits")[0] if all_positions else generator.get_logits()[0]
        return found


def greedy(model: Genai, prompt: Sequence[int], tokens: int) -> Continuation:
    """The likeliest token, again and again; the end-of-text token does not stop it."""
    generator, feed = model.generator(), list(prompt)
    chosen: list[int] = []
    seconds: list[int] = []
    margins: list[float] = []
    for _ in range(tokens):
        logits_V = model.logits(generator, feed, all_positions=False)[-1]
        second, first = sorted(np.argpartition(logits_V, -2)[-2:].tolist(), key=lambda token: float(logits_V[token]))
        chosen.append(first)
        seconds.append(second)
        margins.append(float(logits_V[first] - logits_V[second]))
        feed = [first]
    return Continuation(tokens=chosen, seconds=seconds, margins=margins)


def score(model: Genai, passage: Sequence[int]) -> tuple[list[float], list[int]]:
    """For every token but the first: minus its log probability in nats, and which token was likeliest there."""
    logits_TV = model.logits(model.generator(), passage[:-1], all_positions=True).astype(np.float64)
    shifted_TV = logits_TV - logits_TV.max(axis=-1, keepdims=True)
    targets_T = np.array(passage[1:])
    losses_T = np.log(np.exp(shifted_TV).sum(axis=-1)) - shifted_TV[np.arange(len(targets_T)), targets_T]
    return losses_T.tolist(), logits_TV.argmax(axis=-1).tolist()


def speed(model: Genai, prompt: Sequence[int], decode_tokens: int) -> tuple[float, float]:
    """Tokens a second of a prompt and of decoding."""
    generator = model.generator()
    start = time.perf_counter()
    token = int(model.logits(generator, prompt, all_positions=False)[-1].argmax())
    after_prompt = time.perf_counter()
    for _ in range(decode_tokens):
        token = int(model.logits(generator, [token], all_positions=False)[-1].argmax())
    return len(prompt) / (after_prompt - start), decode_tokens / (time.perf_counter() - after_prompt)


def answer(questions: Questions) -> Answers:
    """Everything asked about one folder."""
    start = time.perf_counter()
    model = Genai(questions.model, threads=questions.threads, context_tokens=questions.context_tokens)
    load_ms = 1000 * (time.perf_counter() - start)
    scores = [score(model, passage) for passage in questions.passages]
    texts = [model.tokenize(text)[: questions.context_tokens] for text in questions.read_texts]
    rates: tuple[float, float] | tuple[None, None] = (None, None)
    if questions.speed_prompt_tokens:
        prompt = [i % model.vocabulary_tokens for i in range(questions.speed_prompt_tokens)]
        rates = speed(model, prompt, questions.speed_decode_tokens)
    cut = [model.tokenize(text) for text in questions.texts]
    return Answers(
        runtime=f"onnxruntime-genai {onnxruntime_genai.__version__}",
        load_ms=load_ms,
        context_tokens=model.context_tokens,
        token_ids=cut,
        bare_token_ids=cut,
        texts_back=[model.text_of(ids) for ids in cut],
        continuations=[greedy(model, prompt, questions.continue_tokens) for prompt in questions.prompts],
        losses=[losses for losses, _ in scores],
        likeliest=[tops for _, tops in scores],
        text_losses=[score(model, tokens)[0] for tokens in texts if len(tokens) > 1],
        prompt_tokens_per_s=rates[0],
        decode_tokens_per_s=rates[1],
        peak_memory_bytes=peak_memory_bytes(),
    )


if __name__ == "__main__":
    try:
        serve(answer)
    except RuntimeError as error:
        sys.exit(str(error))
