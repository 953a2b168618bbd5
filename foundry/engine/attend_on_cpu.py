"""Causal attention within documents on a CPU, by tiles of a few tokens.

A tile of queries sees the tiles of keys from where its first document begins up to itself. Tiles that see equally many
are taken together: two batched products and one softmax, over a part small enough to stay in the processor's caches.
PyTorch's own kernel for CPUs multiplies head by head, by the slower of its libraries (see `products`): it takes up to
twice as long, and with a window, which it knows as a mask alone, far longer.

B: rows, S: tokens of a row, T: B x S, A: query heads, K: key heads, G: query heads of a key head, D: size of a head,
L: tiles, C: tokens of a tile, N: tiles taken together, R: tiles that each of them sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from foundry.engine.documents import documents_of, remembered
from foundry.engine.products import inner_dtype

_TILE = 32
_SCORES = 1 << 19
"""Numbers worked on at a time where a tile has fewer: 2 MiB, and one softmax of them."""
_AHEAD = torch.full((_TILE, _TILE), -torch.inf).triu_(1)
"""Added to the scores of a tile with itself: no query sees what comes after it."""


class _Group(NamedTuple):
    """Tiles of queries that see equally many tiles of keys."""

    queries_N: Tensor
    keys_NR: Tensor
    before: Tensor
    """Added to the scores of the first keys [N, C, some]: minus infinity where a key lies before what a query sees."""

    def taken(self, tiled: Tensor) -> Tensor:
        """The tiles of queries [K x N, rows of a tile, D]."""
        return _rows(tiled, self.queries_N)

    def seen(self, tiled: Tensor) -> Tensor:
        """The tiles of keys [K x N, R x C, D]."""
        return _rows(tiled, self.keys_NR)

    def put(self, tiled: Tensor, found: Tensor) -> None:
        """Set the tiles of queries."""
        tiled.index_copy_(1, self.queries_N, found.view(len(tiled), -1, *tiled.shape[2:]))

    def add(self, tiled: Tensor, found: Tensor) -> None:
        """Add to the tiles of keys."""
        tiled.index_add_(1, self.keys_NR.flatten(), found.view(len(tiled), -1, *tiled.shape[2:]))


def on_cpu(
    q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, positions_BS: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """`attend`; the second output says nothing, for the backward pass computes the softmax again."""
    heads = k_TKD.shape[1]
    q, k, v = (_tiled(tensor, heads) for tensor in (q_TAD, k_TKD, v_TKD))
    q.mul_(scale)
    out = torch.empty_like(q)
    with _exact(q_TAD.device):
        for group in _groups(positions_BS, window, q_TAD.shape[1]):
            p = _softmax(group.taken(q), group.seen(k), group)
            group.put(out, torch.bmm(p, group.seen(v)))
    return _untiled(out, q_TAD), q_TAD.new_zeros(q_TAD.shape[1::-1], dtype=torch.float32)


def backward_on_cpu(
    gradient_TAD: Tensor, q_TAD: Tensor, k_TKD: Tensor, v_TKD: Tensor, out_TAD: Tensor, _: Tensor,
    positions_BS: Tensor, scale: float, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`attend_backward`; with p the softmax of scores s, ds = p (dp - sum_j dp_j p_j), and that sum is dout . out."""
    heads = k_TKD.shape[1]
    g, q, k, v = (_tiled(tensor, heads) for tensor in (gradient_TAD, q_TAD, k_TKD, v_TKD))
    q.mul_(scale)
    inner = _tiled(out_TAD, heads).mul_(g).sum(dim=-1, keepdim=True)
    of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    with _exact(q_TAD.device):
        for group in _groups(positions_BS, window, q_TAD.shape[1]):
            my_q, my_g, seen_k = group.taken(q), group.taken(g), group.seen(k)
            p = _softmax(my_q, seen_k, group)
            of_scores = torch.bmm(my_g, group.seen(v).mT).sub_(group.taken(inner)).mul_(p)
            group.put(of_q, torch.bmm(of_scores, seen_k))
            group.add(of_v, torch.bmm(p.mT, my_g))
            group.add(of_k, torch.bmm(of_scores.mT, my_q))
    return _untiled(of_q.mul_(scale), q_TAD), _untiled(of_k, k_TKD), _untiled(of_v, v_TKD)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Scores are not rounded, neither by autocast nor within products."""
    with torch.autocast("cpu", enabled=False), inner_dtype(torch.float32, device):
        yield


def _groups(positions_BS: Tensor, window: int, heads: int) -> list[_Group]:
    """Of a batch: found once for all its layers that have this window and so many heads."""
    return remembered(
        positions_BS, (_find_groups, window, heads), lambda: list(_find_groups(positions_BS, window, heads))
    )


def _find_groups(positions_BS: Tensor, window: int, heads: int) -> Iterator[_Group]:
    lengths = torch.tensor(documents_of(positions_BS).lengths)
    tokens, tiles = positions_BS.numel(), _tiles(positions_BS.numel())
    first = torch.arange(tiles * _TILE)  # what fills the last tile up sees itself
    first[:tokens] = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    if window:
        first = torch.maximum(first, torch.arange(len(first)) - (window - 1))
    first_LC = first.view(tiles, _TILE)
    seen_L = torch.arange(tiles) - first_LC[:, 0] // _TILE + 1
    for seen in sorted(set(seen_L.tolist())):
        at_a_time = max(1, _SCORES // (heads * _TILE**2 * seen))
        for queries_N in (seen_L == seen).nonzero().squeeze(1).split(at_a_time):
            keys_NR = queries_N[:, None] + torch.arange(1 - seen, 1)
            hidden_NC = first_LC[queries_N] - keys_NR[:, :1] * _TILE  # so many of the first keys
            is_hidden = torch.arange(int(hidden_NC.max())) < hidden_NC[:, :, None]
            yield _Group(queries_N, keys_NR, torch.zeros(is_hidden.shape).masked_fill_(is_hidden, -torch.inf))


def _tiles(tokens: int) -> int:
    return -(-tokens // _TILE)


def _tiled(tensor_TAD: Tensor, key_heads: int) -> Tensor:
    """[K, L, G x C, D] in float32: the tokens of each tile, one query head of a key head after the other."""
    tokens, heads, size = tensor_TAD.shape
    tiles, group = _tiles(tokens), heads // key_heads
    if tiles * _TILE > tokens:
        tensor_TAD = torch.cat([tensor_TAD, tensor_TAD.new_zeros(tiles * _TILE - tokens, heads, size)])
    tiled = torch.empty(key_heads, tiles, group, _TILE, size)
    tiled.copy_(tensor_TAD.view(tiles, _TILE, key_heads, group, size).permute(2, 0, 3, 1, 4))
    return tiled.view(key_heads, tiles, group * _TILE, size)


def _untiled(tiled: Tensor, like_TAD: Tensor) -> Tensor:
    """The reverse, in the type of another tensor of that shape."""
    key_heads, tiles, _, size = tiled.shape
    heads = like_TAD.shape[1]
    tensor = like_TAD.new_empty(tiles * _TILE, heads, size)
    parts = tensor.view(tiles, _TILE, key_heads, heads // key_heads, size)
    parts.copy_(tiled.view(key_heads, tiles, -1, _TILE, size).permute(1, 3, 0, 2, 4))
    return tensor[: len(like_TAD)]


def _rows(tiled: Tensor, tiles: Tensor) -> Tensor:
    """Of each head the rows of one tile, or of the R tiles of a row of `tiles`."""
    return tiled.index_select(1, tiles.flatten()).view(len(tiled) * len(tiles), -1, tiled.shape[-1])


def _softmax(q: Tensor, k: Tensor, group: _Group) -> Tensor:
    """[K x N, G x C, R x C]"""
    scores = torch.bmm(q, k.mT)
    many, _, hidden = group.before.shape
    laid = scores.view(-1, many, q.shape[1] // _TILE, _TILE, scores.shape[-1])
    laid[..., :hidden].add_(group.before[:, None])
    laid[..., -_TILE:].add_(_AHEAD)
    return torch.softmax(scores, dim=-1)
