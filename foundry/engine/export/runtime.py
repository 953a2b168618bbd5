"""One set of questions for every runtime, asked in a process of its own.

A file counts only when the runtime that is meant to run it has opened it in a fresh process. Each runtime is a module
with `answer(questions) -> Answers`, run as `python -m MODULE`: it reads `Questions` as JSON from standard input and
prints `Answers` as JSON (`foundry.engine.export.apart` is the asking side). Nothing heavy is imported here: what the
process holds in memory shall be the model.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a runtime is asked about one model. Token ids are the tokenizer's."""

    model: str
    """A GGUF file, or a folder for transformers."""
    adapter: str | None = None
    """A LoRA adapter on top of it: a GGUF file, or the folder that PEFT saved. ONNX Runtime takes none."""
    threads: int = 1
    """llama.cpp spins at its barriers: more threads than free cores are slower than one."""
    device: str = "cpu"
    """Where transformers computes; llama.cpp's wheel knows the CPU alone."""
    context_tokens: int = 4096
    """Length of llama.cpp's cache; never longer than the model was made for."""
    texts: Sequence[str] = ()
    """To be tokenised."""
    prompts: Sequence[Sequence[int]] = ()
    """To be continued greedily."""
    continue_tokens: int = 32
    passages: Sequence[Sequence[int]] = ()
    """Held-out text: every token but the first is scored given those before it."""
    read_texts: Sequence[str] = ()
    """Held-out text that the runtime cuts itself: scored like a passage, up to the context."""
    speed_prompt_tokens: int = 0
    """Length of the prompt of the speed measurement; 0 leaves it out."""
    speed_decode_tokens: int = 32


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The greedy continuation of one prompt."""

    tokens: list[int]
    seconds: list[int]
    """At each step the token with the second largest logit."""
    margins: list[float]
    """At each step how far the largest logit lies above the second, in nats."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a runtime said."""

    runtime: str
    load_ms: float
    peak_memory_bytes: int
    """Of the whole process: weights, cache, compute buffers and the runtime itself."""
    context_tokens: int
    token_ids: list[list[int]] = field(default_factory=list)
    """Each text with the special tokens that the tokenizer adds."""
    bare_token_ids: list[list[int]] = field(default_factory=list)
    """Each text without them."""
    texts_back: list[str] = field(default_factory=list)
    """What `bare_token_ids` are as text, special tokens left out."""
    continuations: list[Continuation] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    """For each passage, minus the log probability of every token but the first, in nats."""
    likeliest: list[list[int]] = field(default_factory=list)
    """For each passage, the most likely next token at each of these positions."""
    text_losses: list[list[float]] = field(default_factory=list)
    """As `losses`, for each of the texts."""
    prompt_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


def parse_answers(document: dict[str, Any]) -> Answers:
    """Answers back from JSON."""
    continuations = [Continuation(**c) for c in document.pop("continuations")]
    return Answers(**document, continuations=continuations)


def serve(answer: Callable[[Questions], Answers]) -> None:
    """The main of a runtime's process. Whatever libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answers = answer(Questions(**json.load(sys.stdin)))
    json.dump(asdict(answers), out)
    out.close()


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far.

    Linux counts the parent's memory into `ru_maxrss` of a process that it has spawned; VmHWM is this program's own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
