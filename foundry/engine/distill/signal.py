"""What the teacher says about a whole text, made in one pass and read as often as the text is.

A folder holds `origin.json` and, for every `_FILE_TOKENS` counted tokens or so, one safetensors file with the K
likeliest tokens of each position, their log probabilities and that of all others together. Log probabilities are
rounded to float16, which is at most 0.05 % of each; ids take two bytes where the vocabulary allows.

T: counted tokens, C: tokens of a chunk, V: vocabulary, K: likeliest tokens, G: hidden of the teacher, N: rows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.distill.losses import TopK
from foundry.engine.distill.parallel import ALONE, Ranks
from foundry.engine.models import trunk_and_head
from foundry.engine.packed import Packed
from foundry.engine.products import chunk_tokens, inner_dtype, logits_of, operand, softmax, trunk_hidden
from foundry.engine.tensors import write_tensors
from foundry.engine.workspace import read_json, sync, write_json
from foundry.errors import SignalMismatch
from foundry.spec.lifecycle import EventType, Progress, StageName

_FILE_TOKENS = 65_536
_BATCH_TOKENS = 4096
_ORIGIN = "origin.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a saved signal depends on; with any other it means nothing."""

    teacher_sha256: str
    tokenizer_sha256: str
    text_sha256: str
    k: int
    temperature: float


def text_sha256(text: Packed) -> str:
    """Digest of a packed text: its tokens, and which of them count."""
    digest = hashlib.sha256(str(tuple(text.ids_NS.shape)).encode())
    for tensor in (text.ids_NS, text.positions_NS, text.targets_NS):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


class SavedSignal:
    """A folder that holds, or will hold, the signal of one text.

    Raises `SignalMismatch` when the folder was made from something else.
    """

    def __init__(self, folder: Path, origin: Origin, text: Packed) -> None:
        self.folder, self._origin, self._text = folder, origin, text
        # The first counted token of every row, and one more for the end.
        self._starts: list[int] = [0, *text.targets_NS.sum(dim=1).cumsum(dim=0).tolist()]
        self._file_rows = max(1, _FILE_TOKENS // text.sequence_tokens)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _ORIGIN).exists():
            self._refuse_another(read_json(folder / _ORIGIN))
        else:
            write_json(folder / _ORIGIN, asdict(origin))

    def capture(
        self, teacher: PreTrainedModel, stage: StageName, context: RunContext, ranks: Ranks = ALONE
    ) -> None:  # fmt: skip
        """Let the teacher read what is still missing. Raises `Stopped` between files, which stay.

        Of several `ranks` each holds a part of the teacher, so all read everything, and the first writes it.
        """
        bounds = [*range(0, len(self._text), self._file_rows), len(self._text)]
        missing = [part for part in pairwise(bounds) if not self._is_there(part[0])]
        ranks.wait()
        message = (
            f"{stage}: the teacher reads {self._starts[-1]:,} tokens once and keeps its {self._origin.k} likeliest"
        )
        context.report(EventType.LOG, message, stage=stage, files=len(bounds) - 1, missing=len(missing))
        for done, (first, last) in enumerate(missing, 1):
            read = self._read(teacher, first, last, context)
            if ranks.is_first:
                _write_whole(read, self._path(first))
            context.progress(Progress(stage=stage, step=done, steps=len(missing)))
        ranks.wait()
        size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        message = f"{stage}: the signal takes {size:,} bytes, {size / max(1, self._starts[-1]):.0f} a token"
        context.report(EventType.LOG, message, stage=stage, bytes=size)

    def of(self, rows_B: Sequence[int], device: torch.device) -> TopK:
        """What the teacher said of the counted tokens of these rows, in their order."""
        parts = [self._row(row) for row in rows_B]
        ids_TK, log_TK, log_rest_T = (torch.cat(tensors).to(device) for tensors in zip(*parts, strict=True))
        # uint16 knows no arithmetic
        return TopK(ids_TK.to(torch.int64), log_TK.float(), log_rest_T.float())

    def _row(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        first = row // self._file_rows * self._file_rows
        part = slice(self._starts[row] - self._starts[first], self._starts[row + 1] - self._starts[first])
        with safe_open(self._path(first), framework="pt") as file:
            return tuple(file.get_slice(name)[part] for name in ("ids", "log", "log_rest"))

    @torch.no_grad()
    def _read(self, teacher: PreTrainedModel, first: int, last: int, context: RunContext) -> dict[str, Tensor]:
        trunk, head_VG, softcap = trunk_and_head(teacher)
        weight_VG = operand(head_VG, context.dtype)
        step = chunk_tokens(len(weight_VG), context.device)
        rows = max(1, _BATCH_TOKENS // self._text.sequence_tokens)
        chunks: list[tuple[Tensor, Tensor, Tensor]] = []
        with inner_dtype(context.dtype, context.device):
            for start in range(first, last, rows):
                context.heed()
                batch = self._text.batch(slice(start, min(last, start + rows)), context.device)
                hidden_BSG = trunk_hidden(trunk, batch.model_inputs(), context.dtype, context.device)
                hidden_TG = operand(hidden_BSG[batch.targets_BS], context.dtype)
                for hidden_CG in torch.split(hidden_TG, step):
                    chunks.append(self._likeliest(logits_of(hidden_CG, weight_VG, softcap)))
        ids_TK, log_TK, log_rest_T = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
        return {"ids": ids_TK, "log": log_TK, "log_rest": log_rest_T}

    def _likeliest(self, logits_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, narrow = min(self._origin.k, logits_CV.shape[1]), logits_CV.shape[1] <= 2**16
        said = softmax(logits_CV, self._origin.temperature)
        logits_CK, ids_CK = said.logits_TV.topk(k, dim=1)
        # Summed, not 1 minus the likeliest: that difference would have no digits left when they hold nearly all.
        log_rest_C = said.probabilities_TV.scatter_(1, ids_CK, 0.0).sum(dim=1).log_()
        log_CK = logits_CK.sub_(said.log_sum_T[:, None])
        return ids_CK.to(torch.uint16 if narrow else torch.int32).cpu(), log_CK.half().cpu(), log_rest_C.half().cpu()

    def _path(self, first_row: int) -> Path:
        return self.folder / f"rows-{first_row:09d}.safetensors"

    def _is_there(self, first_row: int) -> bool:
        last = min(len(self._text), first_row + self._file_rows)
        try:
            with safe_open(self._path(first_row), framework="pt") as file:
                found: list[int] = file.get_slice("log_rest").get_shape()
        except (OSError, SafetensorError):
            return False
        return found == [self._starts[last] - self._starts[first_row]]

    def _refuse_another(self, found: dict[str, object]) -> None:
        mine = asdict(self._origin)
        if differing := [name.removesuffix("_sha256") for name in mine if found.get(name) != mine[name]]:
            raise SignalMismatch(
                f"the saved signal in {self.folder} was made from another {', '.join(differing)}; remove that folder, "
                "or start the job in a new one",
                pointer="/distill/signal",
            )


def _write_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """The file appears under its name only when complete."""
    aside = path.with_suffix(".partial")
    write_tensors(tensors, aside)
    sync(aside)
    aside.replace(path)
    sync(path.parent)
