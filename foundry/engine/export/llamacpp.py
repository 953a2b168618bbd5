"""Opens a GGUF in llama.cpp and answers questions about it: `python -m foundry.engine.export.llamacpp`.

The C interface takes its parameters as structs by value whose layout changes between versions. Both structs travel
through here as opaque blocks, larger than any version's: the library fills in its own defaults, and what is set
differently (the context length) is read back through a function before anything counts on it.

T: tokens of a sequence, V: vocabulary.
"""

import ctypes
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p

import numpy as np

from foundry.engine.export.library import runtime_version, shared_library
from foundry.engine.export.runtime import Answers, Continuation, Questions, peak_memory_bytes, serve

_DECODE = 1  # llama_process_type
_BATCH_TOKENS = 512
_LOG_LINES = 6
_LogCallback = CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class LlamaError(RuntimeError):
    """llama.cpp refused; the message carries its last lines of log."""


class _Blob(ctypes.Structure):
    """A parameter struct of unknown layout, passed by value: room to spare is never read."""

    _fields_ = (("words", c_uint32 * 256),)


_SIGNATURES = {
    "llama_model_default_params": (_Blob, []),
    "llama_context_default_params": (_Blob, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Blob]),
    "llama_init_from_model": (c_void_p, [c_void_p, _Blob]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "llama_batch_ext_init": (c_void_p, [c_void_p]),
    "llama_batch_ext_clear": (None, [c_void_p]),
    "llama_batch_ext_free": (None, [c_void_p]),
    "llama_batch_ext_add_token": (c_int32, [c_void_p, c_int32, c_int32]),
    "llama_batch_ext_set_pos": (c_bool, [c_void_p, c_int32, POINTER(c_int32)]),
    "llama_batch_ext_set_output_logits": (c_bool, [c_void_p, c_int32, c_bool]),
    "llama_process": (c_int32, [c_void_p, c_int, c_void_p]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
    "llama_set_adapters_lora": (c_int32, [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)]),
    "llama_free": (None, [c_void_p]),
    "llama_model_free": (None, [c_void_p]),
    "llama_log_set": (None, [_LogCallback, c_void_p]),
    "llama_backend_init": (None, []),
}  # fmt: skip


class Llama:
    """A model and one context of it, on the CPU."""

    def __init__(self, path: str, *, threads: int, context_tokens: int) -> None:
        self._library = shared_library()
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._on_log = _LogCallback(self._keep_log)  # kept here: the library holds no reference of its own
        self._library.llama_log_set(self._on_log, None)
        self._library.llama_backend_init()
        self._model = self._library.llama_model_load_from_file(
            path.encode(), self._library.llama_model_default_params()
        )
        if not self._model:
            raise LlamaError(f"{path} cannot be loaded: {self._last_words()}")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self.vocabulary_tokens: int = self._library.llama_vocab_n_tokens(self._vocabulary)
        self._context = self._new_context(threads, context_tokens)
        self._batch = self._library.llama_batch_ext_init(self._context)

    def _new_context(self, threads: int, context_tokens: int) -> int:
        parameters = self._library.llama_context_default_params()
        trained_for = self._library.llama_model_n_ctx_train(self._model)
        parameters.words[0] = min(trained_for, context_tokens)
        self.usable_tokens: int = parameters.words[0]
        """What may be fed; the library may round the size of its cache up."""
        context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            raise LlamaError(f"no context can be made: {self._last_words()}")
        self.context_tokens: int = self._library.llama_n_ctx(context)
        if self.context_tokens < parameters.words[0]:
            raise LlamaError(f"asked for a context of {parameters.words[0]} tokens, got {self.context_tokens}")
        self._library.llama_set_n_threads(context, threads, threads)
        return int(context)

    def attach(self, path: str) -> None:
        """Compute with a LoRA adapter from now on; the model owns it."""
        adapter = self._library.llama_adapter_lora_init(self._model, path.encode())
        if not adapter:
            raise LlamaError(f"the adapter {path} cannot be loaded: {self._last_words()}")
        if status := self._library.llama_set_adapters_lora(self._context, (c_void_p * 1)(adapter), 1, (c_float * 1)(1)):
            raise LlamaError(f"the adapter {path} cannot be applied (status {status}): {self._last_words()}")

    def close(self) -> None:
        self._library.llama_batch_ext_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text, in which special tokens go by their names. `special` adds what the tokenizer adds."""
        data = text.encode()
        room = len(data) + 16
        ids = (c_int32 * room)()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), ids, room, special, True)
        if count < 0:
            raise LlamaError(f"{text!r:.80} cannot be tokenised (status {count})")
        return ids[:count]

    def text_of(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens; piece by piece, as llama.cpp's server sends an answer."""
        return b"".join(map(self._piece, ids)).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            data = ctypes.create_string_buffer(room)
            size = self._library.llama_token_to_piece(self._vocabulary, token, data, room, 0, False)
            if size >= 0:
                return data.raw[:size]
            room = -size

    def forget_from(self, position: int) -> None:
        """Keep what was fed before this position, so that other tokens can follow there."""
        memory = self._library.llama_get_memory(self._context)
        if not self._library.llama_memory_seq_rm(memory, 0, position, -1):
            raise LlamaError(f"the cache cannot be cut at position {position}: {self._last_words()}")

    def logits(self, ids_T: Sequence[int], *, start: int = 0, all_positions: bool = False) -> Iterator[np.ndarray]:
        """Feed tokens from position `start`; yield the logits [V] at the last position, or at every one.

        Each array is the library's own memory and is overwritten by the next block of tokens.
        """
        if start == 0:
            self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        for begin in range(0, len(ids_T), _BATCH_TOKENS):
            block = ids_T[begin : begin + _BATCH_TOKENS]
            wanted = [all_positions or begin + i == len(ids_T) - 1 for i in range(len(block))]
            self._process(block, start + begin, wanted)
            for index in (i for i, one in enumerate(wanted) if one):
                pointer = self._library.llama_get_logits_ith(self._context, index)
                yield np.ctypeslib.as_array(pointer, shape=(self.vocabulary_tokens,))

    def _process(self, ids: Sequence[int], start: int, wanted: Sequence[bool]) -> None:
        library, batch = self._library, self._batch
        library.llama_batch_ext_clear(batch)
        for offset, (token, output) in enumerate(zip(ids, wanted, strict=True)):
            index = library.llama_batch_ext_add_token(batch, 0, token)
            position = c_int32(start + offset)
            if index != offset or not library.llama_batch_ext_set_pos(batch, index, ctypes.byref(position)):
                raise LlamaError(f"token {token} at position {start + offset} was refused: {self._last_words()}")
            library.llama_batch_ext_set_output_logits(batch, index, output)
        if status := library.llama_process(self._context, _DECODE, batch):
            raise LlamaError(f"decoding failed with status {status}: {self._last_words()}")

    def _keep_log(self, _level: int, text: bytes, _data: object) -> None:
        if line := text.decode(errors="replace").strip(" .\n"):
            self._log.append(line)

    def _last_words(self) -> str:
        return " | ".join(self._log)


@contextmanager
def opened(path: str, *, threads: int = 1, context_tokens: int = 4096) -> Iterator[Llama]:
    """A model, closed at the end."""
    llama = Llama(path, threads=threads, context_tokens=context_tokens)
    try:
        yield llama
    finally:
        llama.close()


def greedy(llama: Llama, prompt: Sequence[int], tokens: int) -> Continuation:
    """The likeliest token, again and again; the end-of-text token does not stop it."""
    steps: list[tuple[int, int, float]] = []
    logits_V = next(llama.logits(prompt))
    for position in range(len(prompt), len(prompt) + tokens):
        second, first = sorted(np.argpartition(logits_V, -2)[-2:].tolist(), key=lambda token: float(logits_V[token]))
        steps.append((first, second, float(logits_V[first] - logits_V[second])))
        if len(steps) < tokens:
            logits_V = next(llama.logits([first], start=position))
    return Continuation(tokens=[s[0] for s in steps], seconds=[s[1] for s in steps], margins=[s[2] for s in steps])


def score(llama: Llama, passage: Sequence[int]) -> tuple[list[float], list[int]]:
    """For every token but the first: minus its log probability in nats, and which token was likeliest there."""
    losses, likeliest = [], []
    for logits_V, target in zip(llama.logits(passage[:-1], all_positions=True), passage[1:], strict=True):
        largest = int(logits_V.argmax())
        shifted_V = logits_V.astype(np.float64) - logits_V[largest]
        losses.append(float(np.log(np.exp(shifted_V).sum()) - shifted_V[target]))
        likeliest.append(largest)
    return losses, likeliest


def speed(llama: Llama, prompt: Sequence[int], decode_tokens: int) -> tuple[float, float]:
    """Tokens a second of a prompt and of decoding, with the whole vocabulary's logits made for each decoded token."""
    start = time.perf_counter()
    logits_V = next(llama.logits(prompt))
    token = int(logits_V.argmax())
    after_prompt = time.perf_counter()
    for position in range(len(prompt), len(prompt) + decode_tokens):
        token = int(next(llama.logits([token], start=position)).argmax())
    return len(prompt) / (after_prompt - start), decode_tokens / (time.perf_counter() - after_prompt)


def answer(questions: Questions) -> Answers:
    """Everything asked about one file."""
    start = time.perf_counter()
    with opened(questions.model, threads=questions.threads, context_tokens=questions.context_tokens) as llama:
        if questions.adapter:
            llama.attach(questions.adapter)
        load_ms = 1000 * (time.perf_counter() - start)
        scores = [score(llama, passage) for passage in questions.passages]
        texts = [llama.tokenize(text, special=True)[: llama.context_tokens] for text in questions.read_texts]
        rates: tuple[float, float] | tuple[None, None] = (None, None)
        if questions.speed_prompt_tokens:
            tokens = [i % llama.vocabulary_tokens for i in range(questions.speed_prompt_tokens)]
            rates = speed(llama, tokens, questions.speed_decode_tokens)
        bare = [llama.tokenize(text, special=False) for text in questions.texts]
        return Answers(
            runtime=runtime_version(),
            load_ms=load_ms,
            context_tokens=llama.context_tokens,
            token_ids=[llama.tokenize(text, special=True) for text in questions.texts],
            bare_token_ids=bare,
            texts_back=[llama.text_of(ids) for ids in bare],
            continuations=[greedy(llama, prompt, questions.continue_tokens) for prompt in questions.prompts],
            losses=[losses for losses, _ in scores],
            likeliest=[tops for _, tops in scores],
            text_losses=[score(llama, tokens)[0] for tokens in texts if len(tokens) > 1],
            prompt_tokens_per_s=rates[0],
            decode_tokens_per_s=rates[1],
            peak_memory_bytes=peak_memory_bytes(),
        )


if __name__ == "__main__":
    try:
        serve(answer)
    except LlamaError as error:
        sys.exit(str(error))
