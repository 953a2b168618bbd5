"""The export stage: for every target a folder with the model in all formats, each opened in its own runtime first."""

from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.corpus import Corpus
from foundry.engine.export.apart import Ask, ask
from foundry.engine.export.build import Build
from foundry.engine.export.library import shared_library
from foundry.engine.export.manifest import NAME
from foundry.engine.export.onnx import require_onnx
from foundry.engine.lora import student_folder
from foundry.engine.models import load_tokenizer, local_folder
from foundry.engine.workspace import Workspace, new_folder
from foundry.errors import ExportFailed, MissingExtra
from foundry.intake.checkpoint import context_limit, open_checkpoint, open_config
from foundry.spec.formats import parse_format
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, Progress
from foundry.spec.target import budgets_of


def check_formats(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Say before anything is computed which formats this teacher cannot have.

    Raises `MissingExtra` when a format's libraries are not installed, `ExportFailed` when no format would be left.
    """
    if not _require_libraries(spec):
        return
    # Behind the check above, because the gguf package is an extra.
    from foundry.engine.export.gguf import check_config
    from foundry.engine.export.vocabulary import vocabulary_of

    folder = local_folder(workspace.inputs.teacher)
    config, family, shape = open_config(folder)
    try:
        check_config(config, family, shape)
        vocabulary_of(load_tokenizer(folder), shape.vocab)
    except ExportFailed as error:
        if all(parse_format(form).container == "gguf" for form in spec.formats):
            raise
        message = f"GGUF files will be left out: {error.message}"
        context.report(EventType.WARNING, message, level="warning", stage="export")


def _require_libraries(spec: JobSpec) -> bool:
    """Whether any format needs GGUF; raises `MissingExtra` when the libraries of a format are not there."""
    containers = {parse_format(form).container for form in spec.formats}
    if "onnx" in containers:
        require_onnx()
    if "gguf" not in containers:
        return False
    shared_library()
    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "export")
    return True


def export(spec: JobSpec, workspace: Workspace, context: RunContext, ask: Ask = ask) -> None:
    """Build `stages/export/TARGET/variant` for every target; one that is already there is kept.

    A format that fails its check is left out with a warning; `ask` opens each in its runtime. Raises `ExportFailed`
    when none is left, and `Stopped`.
    """
    _require_libraries(spec)
    finals = {name: workspace.stage("export", name) / "variant" for name in spec.target_names}
    steps = _Steps(context, len(finals) * (2 + len(spec.formats)))
    shared: tuple[PreTrainedTokenizerBase, Corpus] | None = None
    for number, name in enumerate(finals):
        if (finals[name] / NAME).exists():
            continue
        steps.done = number * (2 + len(spec.formats))
        attached = _attached(spec, workspace, name)
        student = open_checkpoint(student_folder(workspace, name) if attached else workspace.student(name))
        if shared is None:
            tokenizer = load_tokenizer(student.folder)
            shared = tokenizer, Corpus.load(Path(workspace.inputs.data), tokenizer, seed=spec.seed)
        tokenizer, corpus = shared
        budget = budgets_of(spec, context_limit(student.config))[number]
        with new_folder(finals[name]) as folder:
            build = Build(
                spec=spec, workspace=workspace, context=context, budget=budget, student=student, tokenizer=tokenizer,
                corpus=corpus, folder=folder, ask=ask, adapter=attached,
            )  # fmt: skip
            for message in build.run():
                steps.next(message)
    workspace.finish("export", variants=[path.relative_to(workspace.root).as_posix() for path in finals.values()])


def _attached(spec: JobSpec, workspace: Workspace, target: str) -> Path | None:
    """The adapter of a student that ships beside its weights and not in them."""
    adapter = workspace.root / "stages" / "lora" / target / "adapter"
    return adapter if spec.lora is not None and spec.lora.ship == "attached" and adapter.is_dir() else None


class _Steps:
    """Counts what is done, says so, and is where the stage can be stopped."""

    def __init__(self, context: RunContext, steps: int) -> None:
        self._context, self._steps, self.done = context, steps, 0

    def next(self, message: str) -> None:
        self.done += 1
        self._context.report(EventType.LOG, message, level="debug", stage="export")
        self._context.progress(Progress(stage="export", step=min(self.done, self._steps), steps=self._steps))
        self._context.heed()
