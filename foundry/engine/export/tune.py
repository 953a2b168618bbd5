"""What is measured of a student before it is quantised: what its matrices are given, and the types of a mixed file.

One forward pass over a little training text for the first, one more for each class of tensors for the second. Held-out
text is not looked at: what the files lose on it is measured afterwards.
"""

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.corpus import Corpus
from foundry.engine.export.activations import Activations, hear
from foundry.engine.export.exam import PASSAGE_TOKENS, pieces
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.formats import MIXED, Mix, header_bytes, is_weighed, parse_format, weight_bytes
from foundry.spec.job import JobSpec
from foundry.spec.target import Budget

IMATRIX = "quantisation/imatrix.gguf"
"""Where an importance matrix lies in a variant's folder."""
_MIX_TOKENS = 2048
_PREDICTED_SHARE = 0.5
"""Divergences are measured one class at a time on training text; all together on held-out text they are about a third
larger (docs/results.md). A mix is raised until what is predicted of it is this share of what a file may cost."""


class Tuner(NamedTuple):
    """Measures one student; `model` is the student as it ships, in float32."""

    spec: JobSpec
    budget: Budget
    master: Checkpoint
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    context_tokens: int

    def hear(self, model: PreTrainedModel) -> Activations:
        """What the matrices are given, where a format of the job has use for it."""
        formats = {*self.spec.formats, self.budget.format}
        if not self.master.family.gguf_architecture or not any(is_weighed(form) for form in formats):
            return {}
        passages = self._passages(self.spec.export.activation_tokens)
        return hear(model, self.master, passages) if passages else {}

    def mix(self, model: PreTrainedModel, activations: Activations) -> Mix:
        """The fewest bytes with which a mixed file keeps the loss that a job allows, or all that the budget has."""
        from foundry.engine.export.mix import choose_mix  # the gguf package is an extra

        enough = _PREDICTED_SHARE * self.spec.export.quantisation_loss_nats
        return choose_mix(model, self.master, activations, self._passages(_MIX_TOKENS), self._mixed_bytes(), enough)

    def _passages(self, tokens: int) -> list[list[int]]:
        length = min(PASSAGE_TOKENS, self.context_tokens)
        return [piece.ids_T.tolist() for piece in pieces(self.corpus.train, self.tokenizer, length, tokens)]

    def _mixed_bytes(self) -> int:
        """What the tensors of a mixed file may take; those of 8 bits where the budget counts no bytes."""
        family, shape, form = self.master.family, self.master.shape, parse_format(MIXED)
        if self.budget.max_bytes is None:
            return weight_bytes(family, shape, parse_format("gguf:q8_0"), self.master.present)
        beside = self.budget.adapter_bytes(family, shape, self.master.present)
        cache = shape.kv_cache_bytes(self.budget.context_tokens)
        return self.budget.max_bytes - cache - beside - header_bytes(shape, form)


def keep_imatrix(activations: Activations, master: Checkpoint, folder: Path, data: str) -> None:
    """Lay the importance matrix into a variant's folder, for whoever quantises the model again."""
    from foundry.engine.export.imatrix import write_imatrix  # the gguf package is an extra

    path = folder / IMATRIX
    path.parent.mkdir()
    write_imatrix(activations, master, path, data=data, chunk_tokens=PASSAGE_TOKENS)
