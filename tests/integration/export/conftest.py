"""The demo's teacher, text that it can continue, and what plain transformers says about both."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from foundry.engine.corpus import Corpus
from foundry.engine.export.apart import TRANSFORMERS
from foundry.engine.export.exam import Exam, decided, make_exam
from foundry.engine.export.gguf import write_gguf
from foundry.engine.export.runtime import Answers
from foundry.engine.export.vocabulary import Vocabulary, vocabulary_of
from foundry.engine.models import load_tokenizer
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from foundry.spec.job import JobSpec
from tests.export_questions import about, ask_here
from tests.tiny import DEMO_TEACHER


@pytest.fixture(scope="session")
def demo_teacher() -> Path:
    """The folder of the trained teacher; without it these tests could only measure noise."""
    if not (DEMO_TEACHER / "model.safetensors").exists():
        pytest.fail(f"{DEMO_TEACHER} is missing; make it with: python -m demo.train_teacher -o demo/teacher")
    return DEMO_TEACHER


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the text that the demo's teacher was trained on."""
    from demo.corpus import write_jsonl

    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    write_jsonl(path, 300_000)
    return path


@dataclass(frozen=True)
class Demo:
    """The trained teacher and the reference of everything that is asked about it."""

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    exam: Exam
    reference: Answers
    folder: Path

    def written(self, quantisation: str, checkpoint: Checkpoint | None = None) -> Path:
        """The teacher as a GGUF; another reading of the same checkpoint may be given."""
        path = self.folder / f"demo-{quantisation}.gguf"
        write_gguf(checkpoint or self.checkpoint, self.vocabulary, path, quantisation=quantisation, name="demo")
        return path


@pytest.fixture(scope="session")
def demo(demo_teacher: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Opened once in plain transformers."""
    checkpoint, tokenizer = open_checkpoint(demo_teacher), load_tokenizer(demo_teacher)
    spec = JobSpec(teacher=str(demo_teacher), data=str(corpus_file), targets=("smartphone",), evaluate={"tokens": 1536})
    corpus = Corpus.load(corpus_file, tokenizer, seed=0)
    exam = make_exam(spec, corpus, tokenizer, context_tokens=512)
    reference = ask_here(TRANSFORMERS, about(exam, demo_teacher), should_stop=lambda: False)
    exam, reference = decided(exam, reference)
    vocabulary = vocabulary_of(tokenizer, checkpoint.shape.vocab)
    return Demo(checkpoint, vocabulary, exam, reference, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
