"""Fills one variant's folder: write every format, let its runtime answer the exam, keep what passes, sign it all."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.corpus import Corpus
from foundry.engine.export import plain
from foundry.engine.export.activations import UNTUNED, Tuning
from foundry.engine.export.apart import TRANSFORMERS, Ask
from foundry.engine.export.attach import attach
from foundry.engine.export.bits import larger_formats
from foundry.engine.export.exam import Exam, decided, make_exam
from foundry.engine.export.huggingface import shipped_dtype, write_huggingface
from foundry.engine.export.manifest import SAFETENSORS_FOLDER, adapter_bytes_in, format_bytes
from foundry.engine.export.runtime import Answers
from foundry.engine.export.sign import Made, sign
from foundry.engine.export.tune import Tuner, keep_imatrix
from foundry.engine.export.verify import Findings, compare_answers, findings_of
from foundry.engine.export.writing import Writing
from foundry.engine.hardware import hardware_name, processor_name
from foundry.engine.models import load_model
from foundry.engine.workspace import Workspace
from foundry.errors import ExportFailed, TooLossy
from foundry.intake.checkpoint import Checkpoint, context_limit, open_checkpoint
from foundry.spec.formats import FORMATS, MIXED, is_weighed
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.target import Budget
from foundry.spec.variant import WITH_ADAPTER, Metrics

_SAME_LOSS_NATS = 0.002


@dataclass(kw_only=True)
class Build:
    """One variant in the making: `run` fills `folder`."""

    spec: JobSpec
    workspace: Workspace
    context: RunContext
    budget: Budget
    student: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    folder: Path
    ask: Ask
    adapter: Path | None = None
    """A LoRA adapter of PEFT that ships beside the student's weights; None where there is none, or it is in them."""
    tuning: Tuning = UNTUNED
    rows: list[Metrics] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    too_lossy: set[str] = field(default_factory=set)
    """Of the failed formats those that more bits may mend."""
    notes: list[str] = field(default_factory=list)

    def run(self) -> Iterator[str]:
        """Do everything; yields after each step what was done, so that the caller can report and stop."""
        master = self._write_master()
        yield "wrote the plain folder"
        exam, reference = self._examine_master(master)
        yield "opened it in transformers"
        self._tune(master, exam, reference)
        for form in (form for form in self.spec.formats if form != "safetensors"):
            self._try(form, master, exam, reference)
            yield f"finished {form}"
        self._take_more_bits(master, exam, reference)
        self._attach(master, exam)
        passed = {row.model for row in self.rows}.intersection(FORMATS)
        if self.tuning.activations and any(map(is_weighed, passed)):
            keep_imatrix(self.tuning.activations, master, self.folder, Path(self.spec.data).name)
        for note in self.notes:
            self.context.report(EventType.WARNING, f"{self.budget.target}: {note}", level="warning", stage="export")
        if "safetensors" not in self.spec.formats:
            shutil.rmtree(master.folder)
        if not self.rows:
            raise ExportFailed(
                f"target {self.budget.target!r}: no format passed its check: "
                + "; ".join(f"{form}: {reason}" for form, reason in self.failed.items())
            )
        mix = self.tuning.mix if MIXED in passed else {}
        made = Made(self.spec, self.budget, self.student, self.rows, self.failed, self.notes, mix)
        for reason in sign(self.folder, made, self.workspace).over_budget:
            message = f"{self.budget.target}: over its budget: {reason}"
            self.context.report(EventType.WARNING, message, level="warning", stage="export", target=self.budget.target)
        yield "signed the manifest"

    def _write_master(self) -> Checkpoint:
        """The plain folder, which every other format is made from; removed again when it was not asked for."""
        folder = self.folder / SAFETENSORS_FOLDER
        folder.mkdir()
        write_huggingface(self.student, self.tokenizer, folder, self.spec.export.dtype)
        return open_checkpoint(folder)

    def _examine_master(self, master: Checkpoint) -> tuple[Exam, Answers]:
        """What plain transformers says about the folder; it must be what the student said before it was saved."""
        context_tokens = min(self.budget.context_tokens, context_limit(master.config) or self.budget.context_tokens)
        exam = make_exam(self.spec, self.corpus, self.tokenizer, context_tokens)
        questions = replace(
            exam.questions, model=str(master.folder), device=str(self.context.device), threads=torch.get_num_threads()
        )
        if self.context.device.type == "cuda":
            torch.cuda.empty_cache()  # the other process needs what earlier stages no longer use
        exam, reference = decided(exam, self.ask(TRANSFORMERS, questions, should_stop=self.context.should_stop))
        if "safetensors" in self.spec.formats:
            size = sum(path.stat().st_size for path in master.folder.glob("*.safetensors"))
            hardware = hardware_name(self.context.device)
            findings = findings_of(reference, reference, exam, exam.questions.continue_tokens)
            self._record("safetensors", size, reference, findings, exam, hardware)
        return exam, reference

    def _tune(self, master: Checkpoint, exam: Exam, reference: Answers) -> None:
        """Load the student once: for the answers before saving, and for what is measured before quantising."""
        model = self._student_in_memory()
        self._same_as_student(model, exam, reference)
        self.tuning = Tuning(self._tuner(master, exam).hear(model), {})

    def _tuner(self, master: Checkpoint, exam: Exam) -> Tuner:
        context_tokens = exam.questions.context_tokens
        return Tuner(self.spec, self.budget, master, self.corpus, self.tokenizer, context_tokens)

    def _student_in_memory(self) -> PreTrainedModel:
        """In float32, with the weights as they ship."""
        model = load_model(self.student.folder, dtype=torch.float32, device=self.context.device)
        # The weights alone: Gemma keeps a factor beside them, which is not shipped.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(shipped_dtype(self.student, self.spec.export.dtype)).float()
        return model

    def _same_as_student(self, model: PreTrainedModel, exam: Exam, reference: Answers) -> None:
        """Tokens and losses before and after saving. Raises `ExportFailed`."""
        for text, ids in zip(exam.questions.texts, reference.token_ids, strict=True):
            if self.tokenizer(text)["input_ids"] != ids:
                raise ExportFailed(f"the saved tokenizer cuts {text!r:.60} differently; this tokenizer cannot be saved")
        losses, _ = plain.score(model, exam.questions.passages[0])
        if (worst := float(np.abs(np.subtract(losses, reference.losses[0])).max())) > _SAME_LOSS_NATS:
            raise ExportFailed(f"the saved model answers differently from the one in memory, by {worst:.4f} nats")

    def _take_more_bits(self, master: Checkpoint, exam: Exam, reference: Answers) -> None:
        """Where the device's format costs too much: try larger ones that fit, and let the device run the better one."""
        first, limit = self.budget.format, self.spec.export.quantisation_loss_nats
        broken = first in self.failed and first not in self.too_lossy  # more bits would not mend it
        if first not in self.spec.formats or broken:
            return
        tried = [first]
        larger = larger_formats(self.budget, self.student.family, self.student.shape, self.student.present)
        while self._cost(best := min(tried, key=self._cost)) > limit and (form := next(larger, None)):
            if form not in self.spec.formats:
                self._try(form, master, exam, reference)
            tried.append(form)
        for form in tried:
            if form != best and form not in self.spec.formats:
                self._drop(form)
        if best != first:
            self.budget = self.budget.model_copy(update={"format": best})
            message = f"{self.budget.target}: {first} costs more than {limit} nats a token, the device runs {best}"
            self.context.report(EventType.LOG, message, stage="export", target=self.budget.target)

    def _cost(self, form: str) -> float:
        """Nats a token against transformers; infinite for a format that failed."""
        costs = {row.model: row.runtime_loss_difference for row in self.rows}
        found = costs.get(form)
        return math.inf if found is None else found

    def _drop(self, form: str) -> None:
        """Forget a format that was tried and that nobody asked for."""
        Writing(self.folder, self.budget.target, form).remove()
        self.rows = [row for row in self.rows if row.model != form]
        self.failed.pop(form, None)

    def _try(self, form: str, master: Checkpoint, exam: Exam, reference: Answers) -> None:
        """Write and check one format; a failure is recorded, told, and costs this format alone."""
        writing = Writing(self.folder, self.budget.target, form)
        try:
            if form == MIXED and not self.tuning.mix:
                mix = self._tuner(master, exam).mix(self._student_in_memory(), self.tuning.activations)
                self.tuning = self.tuning._replace(mix=mix)
            writing.write(master, self.tokenizer, self._name, self.tuning)
            questions = replace(exam.questions, model=str(writing.path))
            answers = self.ask(writing.runtime, questions, should_stop=self.context.should_stop)
            findings = compare_answers(form, answers, reference, exam, writing.is_cut_otherwise)
        except ExportFailed as error:
            writing.remove()
            self.failed[form] = error.message
            if isinstance(error, TooLossy):
                self.too_lossy.add(form)
            message = f"{self.budget.target}: {form} is left out: {error.message}"
            self.context.report(
                EventType.WARNING, message, level="warning", stage="export", target=self.budget.target, format=form
            )
            return
        if writing.known_difference and writing.known_difference not in self.notes:
            self.notes.append(writing.known_difference)
        size = format_bytes(self.folder, form)
        assert size is not None
        self._record(form, size, answers, findings, exam, processor_name(questions.threads))

    def _attach(self, master: Checkpoint, exam: Exam) -> None:
        """Ship the adapter beside the weights; that llama.cpp cannot have it is told, and PEFT still has it."""
        if self.adapter is None:
            return
        passed = [row.model for row in self.rows]
        forms = [form for form in passed if form.startswith("gguf:")]
        if any(form.startswith("onnx:") for form in passed):
            self.notes.append("The ONNX files are the weights without the adapter, which ONNX Runtime does not take.")
        target = self.budget.target
        try:
            for form, answers, findings in attach(
                self.adapter, master, exam, self.folder, target, forms, ask=self.ask, device=str(self.context.device),
                threads=torch.get_num_threads(), should_stop=self.context.should_stop,
            ):  # fmt: skip
                size = (format_bytes(self.folder, form) or 0) + adapter_bytes_in(self.folder, form)
                one_thread = processor_name(exam.questions.threads)
                hardware = hardware_name(self.context.device) if form == "safetensors" else one_thread
                self._record(form + WITH_ADAPTER, size, answers, findings, exam, hardware)
        except ExportFailed as error:
            self.failed["adapter"] = error.message
            message = f"{target}: the adapter is left out for llama.cpp: {error.message}"
            self.context.report(EventType.WARNING, message, level="warning", stage="export", target=target)

    @property
    def _name(self) -> str:
        return f"{Path(self.spec.teacher.partition('@')[0]).name} for {self.budget.target}"

    def _record(self, form: str, size: int, answers: Answers, findings: Findings, exam: Exam, hardware: str) -> None:
        nats = findings.held_out_loss * findings.tokens
        compared = not form.startswith("safetensors")  # the safetensors folder is what the others are compared with
        row = Metrics(
            model=form,
            parameters=self.student.family.parameter_count(self.student.shape, self.student.present),
            file_bytes=size,
            held_out_loss=findings.held_out_loss,
            perplexity=float(np.exp(min(findings.held_out_loss, 700))),
            bits_per_byte=nats / np.log(2) / exam.text_bytes if exam.text_bytes else None,
            tokens=findings.tokens,
            prompt_tokens_per_s=answers.prompt_tokens_per_s,
            decode_tokens_per_s=answers.decode_tokens_per_s,
            load_ms=answers.load_ms,
            peak_memory_bytes=answers.peak_memory_bytes,
            hardware=hardware,
            runtime=answers.runtime,
            runtime_loss_difference=findings.loss_difference if compared else None,
            runtime_top1_ratio=findings.top1_ratio if compared else None,
            runtime_greedy_tokens=findings.greedy_tokens if compared else None,
        )
        self.rows.append(row)
        message = f"{self.budget.target}: {form} has {size:,} bytes"
        if compared:
            message += f" and costs {findings.loss_difference:+.4f} nats a token"
        data = [row.model_dump(mode="json", exclude_none=True)]
        self.context.report(EventType.METRICS, message, stage="export", target=self.budget.target, metrics=data)
