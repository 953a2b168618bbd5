"""Matrix products in bfloat16 whose results are float32, and float32 products by the faster of PyTorch's libraries.

A logit rounded to bfloat16 carries an error of up to 0.4 %, which a softmax turns into a wrong gradient. Tensor cores
and AMX add up in float32 anyway; `product` keeps that sum instead of rounding it.

On a CPU PyTorch multiplies float32 matrices by MKL, which on an AMD EPYC with AVX-512 takes twice the time of oneDNN,
the library it has for bfloat16. It goes to oneDNN only when told that rounding to bfloat16 is allowed; without AMX
oneDNN makes no use of that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn


@contextmanager
def inner_dtype(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within this, float32 products on a CPU may round their inputs to `dtype`, and take oneDNN where that is right.

    The setting is the whole process's: threads that compute at once should ask for the same.
    """
    if device.type != "cpu":
        yield
        return
    with _fp32_precision("bf16" if dtype == torch.bfloat16 or _onednn_is_exact() else "ieee"):
        yield


@cache
def _onednn_is_exact() -> bool:
    """Whether oneDNN, allowed to round float32 inputs to bfloat16, does not: tried, not read from the processor's name.

    Rounding would be off by some 1e-3 of the result, a float32 sum by less than 1e-6.
    """
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((64, 64, 64), (256, 512, 1024), (1024, 64, 256)):
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(inner, columns, generator=generator)
        exact = left.double() @ right.double()
        with _fp32_precision("bf16"), torch.autocast("cpu", enabled=False):
            error = (left @ right - exact).abs().max() / exact.abs().max()
        if error > 1e-5:
            return False
    return True


@contextmanager
def _fp32_precision(name: str) -> Iterator[None]:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = name
    try:
        yield
    finally:
        matmul.fp32_precision = before


def operand(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as `product` wants it: float32 on a CPU, where rounding happens inside; `dtype` elsewhere; whole."""
    if gather := getattr(tensor, "full_tensor", None):  # of several accelerators each holds some rows
        tensor = gather()
    return tensor.to(torch.float32 if tensor.device.type == "cpu" else dtype)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, from two operands of one dtype."""
    if left.dtype == torch.float32 or left.device.type == "cpu":
        return left.float() @ right.float()
    return torch.mm(left, right, out_dtype=torch.float32)


def rounded_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of two of one dtype: in float32, but on a CPU rounded to that dtype."""
    return left @ right if left.device.type == "cpu" else product(left, right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a float32 matrix, of two of one dtype; on a CPU their product is rounded to it."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.device.type == "cpu":
        total.add_(rounded_product(left, right))
    else:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def logits_of(hidden_TH: Tensor, head_VH: Tensor, softcap: float | None = None) -> Tensor:
    """Logits [T, V] in float32 from two operands; `cap * tanh(logits / cap)` where the family caps them."""
    return capped(product(hidden_TH, head_VH.T), softcap)


def capped(logits_TV: Tensor, softcap: float | None) -> Tensor:
    """Logits as their family caps them, if it does. Overwrites its input."""
    return logits_TV if softcap is None else logits_TV.div_(softcap).tanh_().mul_(softcap)


def slope_of_cap(scaled_TV: Tensor, temperature: float, softcap: float | None) -> Tensor | None:
    """d capped / d raw = 1 - tanh^2, from capped logits that are divided by a temperature; None without a cap."""
    return None if softcap is None else 1 - (scaled_TV * (temperature / softcap)).square_()


class Softmax(NamedTuple):
    """A distribution over outcomes: `probabilities = exp(logits - log_sum)`."""

    probabilities_TV: Tensor
    logits_TV: Tensor
    """Already divided by the temperature."""
    log_sum_T: Tensor
    """Log of the sum of their exponentials."""


def softmax(logits_TV: Tensor, temperature: float = 1.0) -> Softmax:
    """The distribution of these logits. Overwrites its input.

    The log of the sum is read off the likeliest outcome, whose probability is exp(its logit) / sum.
    """
    if temperature != 1.0:
        logits_TV = logits_TV.div_(temperature)
    probabilities_TV = torch.softmax(logits_TV, dim=1)
    if probabilities_TV.device.type == "cpu":  # where its sum is off by 1e-5 over a hundred thousand outcomes
        probabilities_TV.div_(probabilities_TV.sum(dim=1, keepdim=True))
    log_sum_T = logits_TV.amax(dim=1) - probabilities_TV.amax(dim=1).log_()
    return Softmax(probabilities_TV, logits_TV, log_sum_T)


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """How many tokens' logits are worked on at a time: 4 MiB of them on a CPU, to stay in its caches; 256 on a GPU."""
    budget_bytes, least = (4 << 20, 64) if device.type == "cpu" else (256 << 20, 512)
    return max(least, budget_bytes // (4 * vocabulary))


def trunk_hidden(trunk: nn.Module, inputs: dict[str, object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the head reads [B, S, H]; products run in `dtype` even where weights are held in float32."""
    held_wider = dtype != torch.float32 and any(p.dtype == torch.float32 for p in trunk.parameters())
    with torch.autocast(device.type, dtype, enabled=held_wider):
        hidden_BSH: Tensor = trunk(**inputs).last_hidden_state
    return scaled_for_head(hidden_BSH, trunk)


def scaled_for_head(hidden_BSH: Tensor, trunk: nn.Module) -> Tensor:
    """Granite divides its logits by `logits_scaling`; dividing what the head reads is the same."""
    scaling = getattr(trunk.config, "logits_scaling", None)
    return hidden_BSH / scaling if scaling else hidden_BSH
