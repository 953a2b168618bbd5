"""Attention within documents and float32 products on this CPU, against PyTorch's own: `python -m benchmarks.attention`.

Both ways of attention take the same documents in one process, one after the other, on one thread; each time is the
fastest of five, in CPU seconds. PyTorch's way is one call of `scaled_dot_product_attention` for each document, in
float32, with a mask where there is a window. A product is timed by MKL, which PyTorch takes by itself, and as the
engine asks for it.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from foundry.engine.allocator import keep_freed_memory
from foundry.engine.attend import attend
from foundry.engine.documents import document_lengths
from foundry.engine.hardware import hardware_name
from foundry.engine.products import inner_dtype

_CPU = torch.device("cpu")
_PRODUCTS = ((2048, 288, 768), (2048, 2048, 2048), (4096, 512, 1536))


class _Case(NamedTuple):
    """B rows of S tokens in documents of `mean` tokens on average, A query heads, K key heads, heads of D numbers."""

    name: str
    rows: int
    length: int
    mean: int
    heads: int
    key_heads: int
    size: int
    window: int = 0


_CASES = (
    _Case("a small model, short documents", 8, 256, 104, 6, 6, 48),
    _Case("shared keys", 2, 1024, 400, 32, 8, 64),
    _Case("one long document", 1, 4096, 4096, 8, 2, 128),
    _Case("one long document, all keys of their own", 1, 2048, 2048, 12, 12, 64),
    _Case("one long document, a window of 512", 1, 4096, 4096, 8, 2, 128, window=512),
    _Case("one head", 1, 4096, 4096, 1, 1, 64),
)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{hardware_name(_CPU)}; torch {torch.__version__}\n")
    heads = (
        "heads / key heads x size",
        "documents",
        "PyTorch: forward, ms",
        "backward",
        "ours: forward, ms",
        "backward",
    )
    print(f"| {' | '.join(heads)} | of PyTorch's |\n|{'---|' * 7}")
    for case in _CASES:
        positions_BS = _positions(case)
        theirs, mine = (_times(case, partial(way, case, positions_BS)) for way in (_by_document, _ours))
        cells = [f"{case.heads} / {case.key_heads} x {case.size}", case.name]
        cells += [f"{1e3 * seconds:.1f}" for seconds in (*theirs, *mine)]
        print(f"| {' | '.join(cells)} | {sum(mine) / sum(theirs):.2f} |", flush=True)
    print("\n| product | MKL, GFLOP/s | as the engine asks, GFLOP/s |")
    print("|---|---|---|")
    for rows, inner, columns in _PRODUCTS:
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        by_mkl = _fastest_s(partial(torch.mm, left, right))
        with inner_dtype(torch.float32, _CPU):
            asked = _fastest_s(partial(torch.mm, left, right))
        rates = [2e-9 * rows * inner * columns / seconds for seconds in (by_mkl, asked)]
        print(f"| {rows} x {inner} x {columns} | {rates[0]:.0f} | {rates[1]:.0f} |", flush=True)


def _positions(case: _Case) -> Tensor:
    """Documents of exponentially distributed lengths, cut at the end of a row."""
    generator = torch.Generator().manual_seed(0)
    positions_BS = torch.empty(case.rows, case.length, dtype=torch.int32)
    for row in positions_BS:
        start = 0
        while start < case.length:
            drawn = float(torch.empty(()).exponential_(1 / case.mean, generator=generator))
            stop = case.length if case.mean >= case.length else min(case.length, start + max(2, round(drawn)))
            row[start:stop] = torch.arange(stop - start)
            start = stop
    return positions_BS


def _times(case: _Case, way: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    tokens = case.rows * case.length
    given = [
        torch.randn(tokens, heads, case.size, generator=generator).bfloat16().requires_grad_()
        for heads in (case.heads, case.key_heads, case.key_heads)
    ]
    forward_s = _fastest_s(lambda: way(*given))
    out_TAD = way(*given)
    gradient_TAD = torch.randn_like(out_TAD)
    return forward_s, _fastest_s(lambda: torch.autograd.grad(out_TAD, given, gradient_TAD, retain_graph=True))


def _ours(case: _Case, positions_BS: Tensor, *given: Tensor) -> Tensor:
    out_TAD, _ = attend(*given, positions_BS, case.size**-0.5, case.window)
    return out_TAD


def _by_document(case: _Case, positions_BS: Tensor, *given: Tensor) -> Tensor:
    lengths: Sequence[int] = document_lengths(positions_BS)
    shared = case.heads // case.key_heads
    found = []
    for q, k, v in zip(*(tensor.float().split(lengths) for tensor in given), strict=True):
        q_AD, k_AD, v_AD = (
            tensor.transpose(0, 1)[None]
            for tensor in (q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))
        )
        out = F.scaled_dot_product_attention(q_AD, k_AD, v_AD, _mask(len(q), case.window), is_causal=not case.window)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found).bfloat16()


def _mask(length: int, window: int) -> Tensor | None:
    if not window:
        return None
    behind = torch.arange(length)[:, None] - torch.arange(length)
    return torch.zeros(length, length).masked_fill_((behind < 0) | (behind >= window), -torch.inf)


def _fastest_s(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(5):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    main()
