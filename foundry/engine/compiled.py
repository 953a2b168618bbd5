"""Layers compiled by `torch.compile`: norms, rotations and gates become a few kernels."""

import warnings
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foundry.errors import OperatorError
from foundry.spec.family import family_of

_KERNELS = 64
"""Versions of a layer: of each shape of batch, with and without gradients, of teacher and students. PyTorch's limit of
8 would leave the rest uncompiled."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every layer when it first runs, anew for each shape of batch; one layer's code serves all its likes.

    Kernels are chosen by rule, not by trying, so that a resumed run computes with the same ones. A family that the
    compiler fails on stays as it is, and the compiler says so.
    """
    _without_helpers()
    torch._dynamo.config.recompile_limit = _KERNELS
    torch._dynamo.config.suppress_errors = True
    config = model.config.to_dict()
    family = family_of(config)
    for layer in range(family.shape_of(config).layers):
        model.get_submodule(family.layer_module.format(layer=layer)).compile(
            dynamic=False, options={"deterministic": True}
        )


def check_compiler(device: torch.device) -> None:
    """Raise `OperatorError` where nothing can be compiled for a device, as on a machine without a C++ compiler."""
    if (why := _why_not(device)) is not None:
        raise OperatorError(
            f"distill.compile: this machine cannot compile for {device}: {why}. Install a C++ compiler and Python's "
            "headers (on Debian and Ubuntu: apt-get install g++ python3-dev), or leave distill.compile out",
            pointer="/distill/compile",
        )


def can_compile(device: torch.device) -> bool:
    """Whether something can be compiled for a device: tried once, for what it takes differs between them."""
    return _why_not(device) is None


@cache
def _why_not(device: torch.device) -> str | None:
    try:
        _without_helpers()
        with warnings.catch_warnings(), torch._dynamo.config.patch(suppress_errors=False):
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # PyTorch's compiler, of itself
            torch.compile(_something)(torch.ones(8, device=device))
    except Exception as error:  # of Dynamo, Inductor, Triton or the compiler that they start
        lines = str(error).strip().splitlines()
        # The first only says in which backend it was.
        return next((line for line in lines if not line.endswith("raised:")), type(error).__name__)
    return None


def _without_helpers() -> None:
    """Compile in this process alone: a few kernels serve all layers.

    PyTorch before 2.13 waits for idle helper processes for five minutes at its end, where all kernels lay in its cache
    (its issue 162199).
    """
    import torch._inductor.config as inductor  # late: few processes compile

    inductor.compile_threads = 1


def _something(x: Tensor) -> Tensor:
    return x * 2 + 1
