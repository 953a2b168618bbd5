"""A full disk is told apart from other failures to write tensors."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from foundry.engine.tensors import full_disk_said, write_tensors
from foundry.errors import StorageFull


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB; the kernel says so with its own error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_write_tensors_gives_back_what_it_was_given_when_a_tensor_is_a_view(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).view(3, 4)
    write_tensors({"turned": matrix.T}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["turned"], matrix.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool])
def test_write_tensors_keeps_every_type_and_size(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        name: torch.arange(max(1, size), dtype=torch.float64).to(dtype)[:size] for name, size in (("a", 3), ("b", 0))
    }
    tensors |= {"scalar": torch.ones((), dtype=dtype), "odd": torch.ones(7, 1, dtype=dtype)}
    write_tensors(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value)


def test_write_tensors_leaves_nothing_of_a_longer_file_behind(tmp_path: Path) -> None:
    write_tensors({"long": torch.zeros(1000)}, tmp_path / "x.safetensors")
    write_tensors({"short": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["short"], torch.ones(2))


def test_write_tensors_passes_on_what_the_system_says(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OSError, match="File too large"):
        write_tensors({"large": torch.zeros(100_000)}, tmp_path / "x.safetensors")


def test_full_disk_is_said_when_safetensors_reports_it(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFull, match=r"no space left to write x\.safetensors"),
        full_disk_said(tmp_path / "x.safetensors"),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
