"""AdamW, or Muon with AdamW beside it, and their state as plain tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from foundry.engine.context import choose_dtype
from foundry.engine.distill.host import HostAdamW
from foundry.engine.distill.masters import Masters
from foundry.engine.distill.parallel import gathered, own, part_of
from foundry.spec.stages import OptimizerName

_BETAS = (0.9, 0.95)
_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.1
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class _ExactMuon(Muon):
    """PyTorch's Muon with its iteration in float32, on whole matrices also where they lie in shards.

    On a processor without bfloat16 instructions that is far faster.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                gradient, weight = own(parameter.grad), own(parameter)
                momentum = own(state["momentum_buffer"]).lerp_(gradient, 1 - group["momentum"])
                update = orthogonal(gathered(gradient.lerp(momentum, group["momentum"]), parameter))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(part_of(update, parameter), alpha=-0.2 * group["lr"] * max(parameter.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """U V' of the matrix U S V', nearly: a few Newton-Schulz iterations bring its singular values near 1."""
    a, b, c = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / wide.norm().clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


_STATE: dict[type[Optimizer], tuple[str, ...]] = {
    AdamW: ("exp_avg", "exp_avg_sq"), HostAdamW: ("exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",), _ExactMuon: ("momentum_buffer",),
}  # fmt: skip
"""What each keeps for a parameter, of the parameter's shape."""


class Update:
    """Updates named parameters. Matrices of layers decay; embeddings, the output matrix, norms and biases do not.

    Muon (2502.16982) orthogonalises the momentum of the layers' matrices and gets AdamW's rate, scaled by 0.2 times the
    root of the longer side so that an update is as large as AdamW's. Experts of a layer in one tensor stay with AdamW.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], embeddings: set[str], kind: OptimizerName,
        on_host: Masters | None = None,
    ) -> None:  # fmt: skip
        """`embeddings` are names of them and of the output matrix; masters `on_host` are among those named."""
        self._named = named
        matrices = [p for name, p in named.items() if p.ndim >= 2 and name not in embeddings]
        turned = [p for p in matrices if p.ndim == 2 and kind == "muon"]
        known, taken = {id(p) for p in matrices}, {id(p) for p in turned}
        decayed = [p for p in matrices if id(p) not in taken]
        others = [p for p in named.values() if id(p) not in known]
        far = {id(weight) for weight in on_host.weights.values()} if on_host else set()
        self._optimizers: list[Optimizer] = []
        for is_far in (False, True):
            groups = [(decayed, _WEIGHT_DECAY), (others, 0.0)]
            here = [([p for p in group if (id(p) in far) == is_far], decay) for group, decay in groups]
            given = [{"params": params, "weight_decay": decay} for params, decay in here if params]
            if given and is_far and on_host:
                self._optimizers.append(HostAdamW(given, _BETAS, on_host))
            elif given:
                self._optimizers.append(AdamW(given, betas=_BETAS, fused=True))
        if turned:
            native = choose_dtype(turned[0].device) == torch.bfloat16
            kind_of_muon = Muon if native and not isinstance(turned[0], DTensor) else _ExactMuon
            self._optimizers.append(
                kind_of_muon(turned, weight_decay=_WEIGHT_DECAY, momentum=_MOMENTUM, adjust_lr_fn="match_rms_adamw")
            )

    @property
    def groups(self) -> list[dict[str, Any]]:
        """PyTorch's parameter groups, AdamW's first."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self, rate: float) -> None:
        """One update from the gradients as they are, which are dropped."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def begin(self, step: int) -> None:
        """Make room for the state as it is after `step` updates; the caller fills it in."""
        for optimizer in self._optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                state = {key: torch.zeros_like(parameter) for key in _STATE[type(optimizer)]}
                if isinstance(optimizer, AdamW):
                    state["step"] = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
                optimizer.state[parameter] = state

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The state by name."""
        names = {id(parameter): name for name, parameter in self._named.items()}
        for optimizer in self._optimizers:
            for parameter, state in optimizer.state.items():
                for key in _STATE[type(optimizer)]:
                    yield f"{key}.{names[id(parameter)]}", state[key]
