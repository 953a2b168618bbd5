"""What a variant does on this machine: each file opened in its own runtime, in a process of its own.

This is how a device other than the worker is measured: it needs the runtime, and neither torch nor a service.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from foundry.engine.export.apart import LLAMACPP, ONNX, TRANSFORMERS, ask
from foundry.engine.export.manifest import (
    MEASURED,
    SAFETENSORS_FOLDER,
    adapter_bytes_in,
    adapter_of,
    format_bytes,
    onnx_folder,
)
from foundry.engine.export.runtime import Answers, Questions
from foundry.engine.hardware import processor_name
from foundry.errors import InvalidData, UnknownFormat
from foundry.intake.documents import is_held_out, read_documents
from foundry.spec.formats import parse_format
from foundry.spec.target import over_budget
from foundry.spec.variant import WITH_ADAPTER, Metrics, VariantManifest

RUNTIMES = {"gguf": LLAMACPP, "onnx": ONNX, "safetensors": TRANSFORMERS}
"""Container -> the module that asks its runtime."""
_PROMPT_TOKENS, _DECODE_TOKENS = 128, 32
_TEXT_CHARACTERS = 40_000
"""Of held-out text that is scored; about what the export stage scores."""


class Measured(NamedTuple):
    """One file on this machine."""

    metrics: Metrics
    over_budget: tuple[str, ...]
    """Why it does not fit the target that it was made for, by these figures; empty for formats of other devices."""


def shipped_formats(manifest: VariantManifest, wanted: Sequence[str] = ()) -> list[str]:
    """The formats of a variant that can be measured, or of those the wanted. Raises `UnknownFormat`."""
    shipped = [form for form in dict.fromkeys(file.format for file in manifest.files) if form is not None]
    measurable = [form for form in shipped if parse_format(form).container in RUNTIMES]
    if strangers := [form for form in wanted if form not in measurable]:
        raise UnknownFormat(
            f"the variant holds no {', '.join(strangers)} that could be measured; it holds {', '.join(measurable)}"
        )
    return list(wanted) or measurable


def held_out_texts(path: Path) -> list[str]:
    """Documents that no job trains on, by the same rule as in training. Raises `InvalidData` when there is none."""
    texts, room = [], _TEXT_CHARACTERS
    for document in read_documents(path):
        text = document.text or f"{document.prompt or ''}{document.completion or ''}"
        if room > 0 and text and is_held_out(document.key):
            texts.append(text[:room])
            room -= len(text)
    if not texts:
        raise InvalidData(
            f"no text of {path} falls on the held-out side (a twentieth of the documents does, chats are not scored); "
            "give a larger file, or measure without --data"
        )
    return texts


def measure(
    folder: Path, manifest: VariantManifest, forms: Sequence[str], *, texts: Sequence[str], threads: int,
    context_tokens: int,
) -> Iterator[Measured]:  # fmt: skip
    """Bytes, load time, peak memory, speeds and, where there are texts, the loss of each format.

    Raises `ExportFailed` with the runtime's own words when it does not open a file.
    """
    decode = min(_DECODE_TOKENS, context_tokens // 2)
    for form in forms:
        container = parse_format(form).container
        questions = Questions(
            model=str(_model(folder, manifest, form)), adapter=_adapter(folder, manifest, container), threads=threads,
            context_tokens=context_tokens, read_texts=texts, speed_decode_tokens=decode,
            speed_prompt_tokens=min(_PROMPT_TOKENS, context_tokens - decode),
        )  # fmt: skip
        metrics = _metrics(folder, manifest, form, ask(RUNTIMES[container], questions), threads)
        yield Measured(metrics, _over(manifest, metrics))


def _adapter(folder: Path, manifest: VariantManifest, container: str) -> str | None:
    """An adapter that ships beside the weights belongs to what the variant does, as `foundry serve` has it."""
    found = adapter_of(manifest, container)
    return None if found is None else str(folder / found)


def _model(folder: Path, manifest: VariantManifest, form: str) -> Path:
    if form == "safetensors":
        return folder / SAFETENSORS_FOLDER
    if (parsed := parse_format(form)).container == "onnx":
        return folder / onnx_folder(parsed.quantisation)
    return folder / next(file.path for file in manifest.files if file.format == form)


def _metrics(folder: Path, manifest: VariantManifest, form: str, answers: Answers, threads: int) -> Metrics:
    losses = list(chain.from_iterable(answers.text_losses))
    return Metrics(
        model=form + WITH_ADAPTER if adapter_of(manifest, parse_format(form).container) else form,
        parameters=manifest.parameters,
        file_bytes=(format_bytes(folder, form) or 0) + adapter_bytes_in(folder, form),
        held_out_loss=sum(losses) / len(losses) if losses else None,
        tokens=len(losses) or None,
        load_ms=answers.load_ms,
        peak_memory_bytes=answers.peak_memory_bytes,
        prompt_tokens_per_s=answers.prompt_tokens_per_s,
        decode_tokens_per_s=answers.decode_tokens_per_s,
        hardware=processor_name(threads),
        runtime=answers.runtime,
    )


def _over(manifest: VariantManifest, metrics: Metrics) -> tuple[str, ...]:
    if metrics.model.removesuffix(WITH_ADAPTER) != manifest.budget.format:
        return ()
    return over_budget(
        manifest.budget, parameters=manifest.parameters, shape=manifest.shape, device_file_bytes=metrics.file_bytes,
        peak_memory_bytes=metrics.peak_memory_bytes, decode_tokens_per_s=metrics.decode_tokens_per_s,
    )  # fmt: skip


def note(folder: Path, measured: Measured) -> None:
    """Add a line to `measured.jsonl` of the folder, which no signature covers."""
    row = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **measured.metrics.model_dump(mode="json", exclude_none=True),
        "over_budget": measured.over_budget,
    }
    with (folder / MEASURED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
