"""RMS norms in one pass where no gradient is asked for, on a CPU: PyTorch's fused one in place of four steps by hand.

A teacher that only reads spends an eighth of its time in norms without it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


def fuse_norms(model: PreTrainedModel) -> int:
    """Let every norm of a model on a CPU that computes what PyTorch's does use it; return how many do.

    Whether one does is tried, not read from its name: families scale by the weight, by 1 + the weight, or otherwise.
    """
    first = next(model.parameters())
    if first.device.type != "cpu" or hasattr(first, "full_tensor"):  # in shards a weight is whole for moments only
        return 0
    found = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm") and _is_plain(module)]
    for module in found:
        module.forward = _Fused(module)
    return len(found)


class _Fused:
    """A norm's forward pass: fused without gradients, its own with them, where the fused one is no faster."""

    def __init__(self, module: nn.Module) -> None:
        self._weight: Tensor = module.get_parameter("weight")
        self._eps, self._own = _eps_of(module), module.forward

    def __call__(self, states: Tensor) -> Tensor:
        if torch.is_grad_enabled() or states.dtype != self._weight.dtype:
            own: Tensor = self._own(states)
            return own
        return F.rms_norm(states, tuple(self._weight.shape), self._weight, self._eps)


@torch.no_grad()
def _is_plain(module: nn.Module) -> bool:
    weight, eps = getattr(module, "weight", None), _eps_of(module)
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or eps is None:
        return False
    probe = torch.linspace(-3, 3, 2 * weight.numel()).reshape(2, -1)
    return torch.allclose(F.rms_norm(probe, tuple(weight.shape), weight, eps), module(probe), rtol=1e-5, atol=1e-6)


def _eps_of(module: nn.Module) -> float | None:
    return next((float(getattr(module, name)) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
