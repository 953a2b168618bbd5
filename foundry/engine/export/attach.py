"""An adapter that ships beside a variant's weights: carried for PEFT, written for llama.cpp, compared in both."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from foundry.engine.export.apart import LLAMACPP, TRANSFORMERS, Ask
from foundry.engine.export.exam import Exam
from foundry.engine.export.manifest import gguf_name
from foundry.engine.export.runtime import Answers
from foundry.engine.export.verify import Findings, compare_answers, findings_of
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.adapter import ADAPTER_FOLDER, ADAPTER_GGUF
from foundry.spec.formats import parse_format

_MOST_EXACT_FIRST = ("f16", "q8_0", "q6_k", "q5_k_m", "mixed", "q4_k_m")


class Attached(NamedTuple):
    """What a model with its adapter said."""

    form: str
    """Of the weights under the adapter."""
    answers: Answers
    findings: Findings


def attach(
    adapter: Path, master: Checkpoint, exam: Exam, folder: Path, target: str, forms: Sequence[str], *, ask: Ask,
    device: str, threads: int, should_stop: Callable[[], bool],
) -> Iterator[Attached]:  # fmt: skip
    """Carry the adapter into a variant's folder and try it with the weights of each of these GGUF formats.

    The most exact of the files decides; with fewer bits the same adapter is measured and not judged, for the weights
    were. Raises `ExportFailed` when llama.cpp does not compute what PEFT does; its file is then gone.
    """
    shutil.copytree(adapter, folder / ADAPTER_FOLDER)
    plain = replace(exam, questions=replace(exam.questions, texts=()))
    asked = replace(
        plain.questions, model=str(master.folder), adapter=str(folder / ADAPTER_FOLDER), device=device, threads=threads
    )
    reference = ask(TRANSFORMERS, asked, should_stop=should_stop)
    yield Attached("safetensors", reference, findings_of(reference, reference, plain, asked.continue_tokens))
    ranked = sorted(forms, key=lambda form: _MOST_EXACT_FIRST.index(parse_format(form).quantisation))
    if not ranked:
        return
    from foundry.engine.export.adapter import write_adapter  # the gguf package is an extra

    path = folder / ADAPTER_GGUF
    try:
        write_adapter(master, folder / ADAPTER_FOLDER, path)
        for form in ranked:
            model = folder / gguf_name(target, parse_format(form).quantisation)
            questions = replace(plain.questions, model=str(model), adapter=str(path))
            answers = ask(LLAMACPP, questions, should_stop=should_stop)
            if form == ranked[0]:
                yield Attached(form, answers, compare_answers(form, answers, reference, plain))
            else:
                yield Attached(form, answers, findings_of(answers, reference, plain, 0))
    except ExportFailed:
        path.unlink(missing_ok=True)
        raise
