"""The entry for whoever wants a model or a variant scored: a worker, the command line, a notebook."""

from collections.abc import Callable
from pathlib import Path

import torch
from lm_eval.tasks import TaskManager

from foundry.engine.context import RunContext
from foundry.engine.evaluate.locate import find_gguf, find_model
from foundry.engine.evaluate.suites.gguf import GgufModel
from foundry.engine.evaluate.suites.harness import HarnessModel
from foundry.engine.evaluate.suites.run import Conditions, run_suite
from foundry.engine.export.library import runtime_version
from foundry.engine.hardware import processor_name
from foundry.engine.models import load_model, load_tokenizer
from foundry.engine.workspace import sha256_of
from foundry.intake.checkpoint import checkpoint_sha256, open_checkpoint
from foundry.spec.suite import Suite, SuiteResult

_MOST_GGUF_TOKENS = 4096
"""Of a GGUF's context: the longest few-shot prompt of our suites has fewer, and each costs memory for the cache."""


def evaluate_model(
    model: str | Path, suite: Suite, output: Path, conditions: Conditions, context: RunContext, *,
    name: str | None = None, form: str | None = None, manager: TaskManager | None = None,
    take: Callable[[SuiteResult], None] = lambda _: None,
) -> SuiteResult:  # fmt: skip
    """Score a folder, a hub id or a variant's folder in every task of a suite; each result lies in `output`.

    `form` names one of a variant's GGUF formats, which llama.cpp then answers for. Progress is one event a task through
    `context`, and `take` is given what is finished after each; results that stand there from an earlier run are kept.
    Raises `TeacherNotFound`, `UnknownFormat`, `DamagedCheckpoint` when the model does not load, `OutOfMemory`, and
    `Stopped`.
    """
    if form is not None:
        file = find_gguf(model, form)
        threads = torch.get_num_threads()
        with GgufModel(
            file.path, load_tokenizer(file.tokenizer), context, threads=threads, most_tokens=_MOST_GGUF_TOKENS
        ) as opened_file:
            return run_suite(
                suite, opened_file, name or file.name, sha256_of(file.path), output, conditions, context,
                manager=manager, hardware=f"{processor_name(threads)}, {runtime_version()}", take=take,
            )  # fmt: skip
    folder, found = find_model(model)
    open_checkpoint(folder)
    opened = load_model(folder, dtype=context.dtype, device=context.device)
    lm = HarnessModel(opened, load_tokenizer(folder), context)
    digest = checkpoint_sha256(folder)
    return run_suite(suite, lm, name or found, digest, output, conditions, context, manager=manager, take=take)
