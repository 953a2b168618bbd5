"""Rows of tokens, and some of them on a device.

N: rows, S: tokens of a row, B: rows of a batch.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class Batch(NamedTuple):
    """Some rows on a device."""

    ids_BS: torch.Tensor
    positions_BS: torch.Tensor
    targets_BS: torch.Tensor
    rows_B: tuple[int, ...] = ()
    """Which rows of the packed text these are."""

    def model_inputs(self) -> dict[str, Any]:
        """Arguments for a transformers model or trunk: restarting positions keep documents apart, a cache would not."""
        return {"input_ids": self.ids_BS, "position_ids": self.positions_BS, "use_cache": False}

    @property
    def labels_BS(self) -> torch.Tensor:
        """The next token at each position; meaningless where `targets_BS` is False."""
        return self.ids_BS.roll(-1, dims=1)


@dataclass(frozen=True)
class Packed:
    """Rows of tokens. Plain text runs on from row to row; chats and completions are cut only when longer than a row."""

    ids_NS: torch.Tensor
    positions_NS: torch.Tensor
    """Position within the document; 0 in the padding, so that each padding token is a document of its own."""
    targets_NS: torch.Tensor
    """True where predicting token t + 1 from t counts: same document, not padding, not prompt."""
    bytes: int
    """UTF-8 bytes of the text of all counted tokens."""
    documents_NS: torch.Tensor | None = None
    """Place of each token's document among those that were packed; None when nobody kept count."""
    document_bytes: Mapping[int, int] = field(default_factory=dict)
    """`bytes`, by that place."""

    def __len__(self) -> int:
        return self.ids_NS.shape[0]

    @property
    def sequence_tokens(self) -> int:
        return self.ids_NS.shape[1]

    @property
    def counted_tokens(self) -> int:
        """How many predictions count."""
        return int(self.targets_NS.sum())

    def batch(self, rows: Sequence[int] | slice, device: torch.device | str = "cpu") -> Batch:
        """These rows on a device, ids and positions as int64."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        ids_BS, positions_BS = self.ids_NS[index].long(), self.positions_NS[index].long()
        ids_BS, positions_BS, targets_BS = (
            tensor.to(device, non_blocking=True) for tensor in (ids_BS, positions_BS, self.targets_NS[index])
        )
        rows_B = tuple(range(*rows.indices(len(self)))) if isinstance(rows, slice) else tuple(rows)
        return Batch(ids_BS, positions_BS, targets_BS, rows_B)

    def batches(self, batch_rows: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """All rows in order."""
        for start in range(0, len(self), batch_rows):
            yield self.batch(slice(start, start + batch_rows), device)


def mix(parts: Sequence[Packed], seed: int) -> Packed:
    """The rows of several packed texts of one length, shuffled by `seed`."""
    order = list(range(sum(map(len, parts))))
    random.Random(f"mix:{seed}").shuffle(order)
    ids_NS, positions_NS, targets_NS = (
        torch.cat([getattr(part, name) for part in parts])[order] for name in ("ids_NS", "positions_NS", "targets_NS")
    )
    return Packed(ids_NS, positions_NS, targets_NS, sum(part.bytes for part in parts))
