"""Layers compiled by `torch.compile`: norms, rotations and gates become a few kernels on an accelerator."""

import torch
from transformers import PreTrainedModel

from foundry.spec.family import family_of

_KERNELS = 64
"""Versions of a layer: of each shape of batch, with and without gradients, of teacher and students. PyTorch's limit of
8 would leave the rest uncompiled."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every layer when it first runs, anew for each shape of batch. The layers are one another's likes, so the
    code of the first serves all.

    Kernels are chosen by rule, not by trying, so that a resumed run computes with the same ones.
    """
    torch._dynamo.config.recompile_limit = _KERNELS
    config = model.config.to_dict()
    family = family_of(config)
    for layer in range(family.shape_of(config).layers):
        model.get_submodule(family.layer_module.format(layer=layer)).compile(
            dynamic=False, options={"deterministic": True}
        )
