"""One format of a variant on its way to the disk: who writes it, who opens it, and where they are known to differ."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from foundry.engine.export.activations import UNTUNED, Tuning
from foundry.engine.export.apart import LLAMACPP, ONNX
from foundry.engine.export.manifest import gguf_name, onnx_folder
from foundry.engine.export.onnx import write_onnx
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.formats import parse_format

_RUNTIMES: Mapping[str, str] = {"gguf": LLAMACPP, "onnx": ONNX}
_NUL = "\x00"


class Writing:
    """A file, or a folder, in one format."""

    def __init__(self, folder: Path, target: str, form: str) -> None:
        self._format = parse_format(form)
        name = gguf_name(target, self._format.quantisation)
        self.path = folder / (onnx_folder(self._format.quantisation) if self._format.container == "onnx" else name)
        self.runtime = _RUNTIMES[self._format.container]
        self.known_difference = ""
        """What a user must know of the tokenizer in this format; empty when there is nothing."""
        self.is_cut_otherwise: Callable[[str], bool] = lambda text: False
        """Whether the runtime is known to cut a text into other tokens."""

    def write(
        self, master: Checkpoint, tokenizer: PreTrainedTokenizerBase, name: str, tuning: Tuning = UNTUNED
    ) -> None:
        """Raises `ExportFailed` for a model that the format cannot express."""
        if self._format.container == "onnx":
            write_onnx(master, self.path, quantisation=self._format.quantisation)
            self.known_difference = "in the ONNX files' runtime a text ends at its first NUL character"
            self.is_cut_otherwise = lambda text: _NUL in text
            return
        # The gguf package is an extra: a job that ships other formats alone does without.
        from foundry.engine.export.gguf import write_gguf
        from foundry.engine.export.vocabulary import vocabulary_of

        vocabulary = vocabulary_of(tokenizer, master.shape.vocab)
        write_gguf(master, vocabulary, self.path, quantisation=self._format.quantisation, name=name, tuning=tuning)
        self.known_difference, self.is_cut_otherwise = vocabulary.known_difference, vocabulary.is_cut_otherwise

    def remove(self) -> None:
        """Take away what was written."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self.path.unlink(missing_ok=True)
