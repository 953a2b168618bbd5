"""What only a GPU shows: `make test-gpu`. Without one nothing here is collected, and that command fails.

FOUNDRY_TEST_DEVICE names another device than the first GPU; with `cpu` the tests can be tried where there is none.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from transformers.utils.logging import disable_progress_bar

from foundry.engine.context import RunContext
from tests import tiny
from tests.unit.engine.conftest import Heard

disable_progress_bar()  # what the tests print would be lost in it
DEVICE = torch.device(os.environ.get("FOUNDRY_TEST_DEVICE", "cuda"))
IS_CUDA = DEVICE.type == "cuda"
needs_gpu = pytest.mark.gpu
collect_ignore_glob = ["test_*.py"] if IS_CUDA and not torch.cuda.is_available() else []
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["in float32", "in bfloat16"]
)  # fmt: skip


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def context(heard: Heard) -> RunContext:
    """On the GPU in float32; `replace` it for bfloat16."""
    return RunContext(emit=heard, should_stop=heard.should_stop, device=DEVICE, dtype=torch.float32, seed=0)


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    """No test is measured with what another has left with the allocator."""
    yield
    if IS_CUDA and torch.cuda.is_initialized():
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def new_model(seed: int = 0, **sizes: int) -> torch.nn.Module:
    """A small Llama whose heads are of a size that attention kernels take, on the CPU in float32."""
    return tiny.new_model(
        **{"hidden": 128, "ffn": 256, "heads": 4, "kv_heads": 2, "head_dim": 32, "seed": seed, **sizes}
    )
