"""What runs on an accelerator makes its tensors there and mixes no types, shown without one by tensors without values.

They lie on a device that is no CPU; one that is made on the CPU beside them is refused by PyTorch itself.
T: tokens, V: vocabulary, H: hidden, G: hidden of the teacher, K: likeliest tokens.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from foundry.engine.distill.divergences import divergence_of
from foundry.engine.distill.hidden import Distance, cosine, mse
from foundry.engine.distill.losses import HardLabels, Head, Signal, TopK, Whole, cross_entropy, match
from foundry.engine.distill.optimizers import orthogonal
from foundry.engine.evaluate.compare import Outputs, figures_of
from foundry.engine.prune.sums import ChannelSums, StreamSums
from foundry.spec.stages import Jsd, Loss

T, V, H, G, K = 12, 1536, 64, 96, 5
HALF = torch.bfloat16
THERE = torch.device("meta")


@pytest.fixture(autouse=True)
def without_values() -> Iterator[None]:
    with FakeTensorMode():
        yield


def new(*size: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.empty(size, dtype=dtype, device=THERE)


def are_float32_there(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "meta" and tensor.dtype == torch.float32 for tensor in tensors)


def whole() -> Signal:
    return Whole(new(T, G), Head(new(V, G), softcap=20.0))


def top_k() -> Signal:
    return TopK(new(T, K, dtype=torch.int64), new(T, K, dtype=torch.float32), new(T, dtype=torch.float32))


@pytest.mark.parametrize("signal", [whole, top_k])
@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", Jsd(kind="jsd", beta=0.5)], ids=["KL", "reverse", "JSD"])
def test_a_loss_on_an_accelerator_mixes_no_devices_and_types(signal: Callable[[], Signal], loss: Loss) -> None:
    hard = HardLabels(new(T, dtype=torch.int64), 0.1)
    student = Head(new(V, H), softcap=30.0)  # frozen: PyTorch 2.11 adds no product to a tensor without values
    scored = match(new(T, H), student, signal(), divergence_of(loss), temperature=2.0, hard=hard, dtype=HALF, chunk=5)
    assert scored.total.dtype == torch.float64 and scored.total.device.type == "meta"
    assert are_float32_there(scored.hidden_TH)


def test_cross_entropy_and_figures_on_an_accelerator_mix_no_devices_and_types() -> None:
    labels_T = new(T, dtype=torch.int64)
    assert are_float32_there(cross_entropy(new(T, H), Head(new(V, H)), labels_T, dtype=HALF).hidden_TH)
    student, teacher = Outputs(new(T, H), new(V, H), None), Outputs(new(T, G), new(V, G), 20.0)
    for figures_T4 in (figures_of(labels_T, student), figures_of(labels_T, student, teacher)):
        assert figures_T4.shape == (T, 4) and figures_T4.device.type == "meta"


@pytest.mark.parametrize("distance", [cosine, mse])
def test_a_distance_of_hidden_states_stays_on_the_accelerator(distance: Distance) -> None:
    loss, gradient_TG = distance(new(T, G, dtype=torch.float32), new(T, G, dtype=torch.float32))
    assert loss.device.type == "meta" and are_float32_there(gradient_TG)


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
def test_an_orthogonal_update_stays_on_the_accelerator(dtype: torch.dtype) -> None:
    assert orthogonal(new(G, H, dtype=dtype)).device.type == "meta"


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
@pytest.mark.parametrize("centred", [True, False])
def test_calibration_adds_up_on_the_accelerator(dtype: torch.dtype, *, centred: bool) -> None:
    states = new(2, T, V, dtype=dtype)  # wider than a panel
    channels, stream = ChannelSums(V, THERE), StreamSums(V, THERE, centred=centred)
    channels.add(states)
    channels.add_routed(states[0], new(T, dtype=dtype))
    stream.add(states)
    stream.add(states, states)
    found = channels.tensors("channels", new(H, V)) | stream.tensors("stream")
    assert all(tensor.device.type == "meta" for tensor in found.values())
