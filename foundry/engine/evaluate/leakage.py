"""Whether held-out text was trained on: documents are compared by their words, not by their ids.

A held-out document has leaked when a training document says the same (letter case and white space aside), or when half
of its runs of eight words stand in the training text. Runs that more than a tenth of the held-out documents share are a
form, not content, and do not count.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from foundry.engine.context import Stopped
from foundry.intake.documents import Document

RUN_WORDS = 8
LEAKED_SHARE = 0.5
_FORM_SHARE = 0.1
_FEWEST_FOR_FORMS = 3
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_STOP_EVERY = 1000


@dataclass(frozen=True, kw_only=True)
class Leak:
    """One held-out document that training text gives away."""

    key: str
    share: float
    """Of its runs of words that stand in the training text; 1 for the same text."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The held-out documents that are clean, and those that are not."""

    clean: Sequence[Document]
    leaks: Sequence[Leak]


def find_leaks(
    held_out: Sequence[Document], train: Iterable[Document], should_stop: Callable[[], bool] = lambda: False
) -> Checked:
    """Compare each held-out document with all of the training side; memory grows with the held-out side alone.

    Raises `Stopped` when asked to.
    """
    words = [_words(document) for document in held_out]
    runs = [_runs(found) for found in words]
    watched = np.unique(np.concatenate([np.unique(one) for one in runs])) if runs else np.zeros(0, dtype=np.uint64)
    seen = np.zeros(len(watched), dtype=bool)
    wholes = {tuple(found) for found in words}
    copied: set[tuple[str, ...]] = set()
    for number, document in enumerate(train):
        if number % _STOP_EVERY == 0 and should_stop():
            raise Stopped
        found = _words(document)
        if (whole := tuple(found)) in wholes:
            copied.add(whole)
        _mark(_runs(found), watched, seen)
    content = ~_forms(runs, watched)
    clean: list[Document] = []
    leaks: list[Leak] = []
    for document, found, run in zip(held_out, words, runs, strict=True):
        share = 1.0 if tuple(found) in copied else _share(run, watched, seen, content)
        if share >= LEAKED_SHARE:
            leaks.append(Leak(key=document.key, share=share))
        else:
            clean.append(document)
    return Checked(clean=clean, leaks=leaks)


def _words(document: Document) -> list[str]:
    turns = (message.content for message in document.messages or ())
    parts = (document.text, document.prompt, document.completion, *turns)
    return " ".join(part for part in parts if part).casefold().split()


def _runs(words: Sequence[str]) -> np.ndarray:
    """A number for each run of eight words; none for shorter text. 64 bits: two runs that differ never meet."""
    if len(words) < RUN_WORDS:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.fromiter((hash(word) & 0xFFFFFFFFFFFFFFFF for word in words), dtype=np.uint64, count=len(words))
    run = np.zeros(len(words) - RUN_WORDS + 1, dtype=np.uint64)
    for offset in range(RUN_WORDS):
        run = run * _FACTOR + hashes[offset : offset + len(run)]
    return run


def _mark(runs: np.ndarray, watched: np.ndarray, seen: np.ndarray) -> None:
    if not len(watched) or not len(runs):
        return
    place = np.minimum(np.searchsorted(watched, runs), len(watched) - 1)
    seen[place[watched[place] == runs]] = True


def _forms(runs: Sequence[np.ndarray], watched: np.ndarray) -> np.ndarray:
    """Which of the watched runs stand in so many held-out documents that they belong to a form."""
    count = np.zeros(len(watched), dtype=np.int64)
    for run in runs:
        count[np.searchsorted(watched, np.unique(run))] += 1
    return count > max(_FEWEST_FOR_FORMS, _FORM_SHARE * len(runs))


def _share(run: np.ndarray, watched: np.ndarray, seen: np.ndarray, content: np.ndarray) -> float:
    place = np.searchsorted(watched, run)
    place = place[content[place]]
    return float(seen[place].mean()) if len(place) else 0.0
