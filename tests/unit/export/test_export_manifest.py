import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from foundry.engine.export.manifest import (
    NAME,
    artifacts_in,
    check_folder,
    format_bytes,
    gguf_name,
    read_manifest,
)
from foundry.errors import ArtifactDamaged
from foundry.spec.job import JobSpec
from foundry.spec.speed import Speed
from foundry.spec.target import Budget, over_budget
from foundry.spec.variant import Lineage, VariantManifest
from foundry.spec.weights import Shape

SHAPE = Shape(layers=2, hidden=32, ffn=64, heads=4, kv_heads=2, head_dim=8, vocab=320, tied=True)
CACHE_BYTES = 2 * 2 * 2 * 8 * 100 * 2


def budget(**limit: Any) -> Budget:
    return Budget(target="watch", format="gguf:q4_k_m", context_tokens=100, **limit)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A variant's folder with stand-in bytes under a genuine manifest."""
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "safetensors" / "config.json").write_bytes(b"{}")
    (tmp_path / gguf_name("watch", "q4_k_m")).write_bytes(b"quantised")
    (tmp_path / "README.md").write_bytes(b"# card")
    manifest = VariantManifest(
        target="watch", family="llama", shape=SHAPE, parameters=1000, budget=budget(max_params=1000), fits_budget=True,
        created_at=datetime.now(UTC), spec=JobSpec(teacher="./t", data="./d", targets=("smartphone",)),
        lineage=Lineage(teacher="./t", teacher_sha256="0", data="./d", data_sha256="0", versions={}),
        metrics=(), failed_formats={}, files=artifacts_in(tmp_path),
    )  # fmt: skip
    (tmp_path / NAME).write_text(manifest.model_dump_json())
    return tmp_path


def test_artifacts_name_every_file_and_its_format_but_not_the_manifest(folder: Path) -> None:
    assert {artifact.path: artifact.format for artifact in artifacts_in(folder)} == {
        "README.md": None,
        "safetensors/config.json": "safetensors",
        "safetensors/model.safetensors": "safetensors",
        "watch-q4_k_m.gguf": "gguf:q4_k_m",
    }


def test_format_bytes_counts_weights_alone(folder: Path) -> None:
    assert format_bytes(folder, "safetensors") == len(b"weights")
    assert format_bytes(folder, "gguf:q4_k_m") == len(b"quantised")
    assert format_bytes(folder, "gguf:f16") is None


def test_check_folder_accepts_what_was_signed(folder: Path) -> None:
    assert check_folder(folder) == read_manifest(folder)


def change(folder: Path) -> None:
    (folder / "watch-q4_k_m.gguf").write_bytes(b"quantisee")


def remove(folder: Path) -> None:
    (folder / "README.md").unlink()


def add(folder: Path) -> None:
    (folder / "safetensors" / "model.py").write_bytes(b"import os")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (change, "watch-q4_k_m.gguf has other bytes"),
        (remove, "README.md is missing"),
        (add, r"safetensors/model\.py is not in the manifest"),
    ],
)
def test_check_folder_names_what_is_wrong(damage: Callable[[Path], None], problem: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ArtifactDamaged, match=problem):
        check_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"target": "watch"}'])
def test_read_manifest_refuses_what_is_not_one(content: str, folder: Path) -> None:
    (folder / NAME).write_text(content)
    with pytest.raises(ArtifactDamaged, match="is not a manifest"):
        read_manifest(folder)


def test_read_manifest_refuses_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactDamaged, match=r"holds no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("limit", "file_bytes", "expected"),
    [
        ({"max_params": 1000}, None, True),
        ({"max_params": 999}, 1, False),
        ({"max_bytes": 5000 + CACHE_BYTES}, 5000, True),
        ({"max_bytes": 5000 + CACHE_BYTES}, 5001, False),
        ({"max_bytes": 10**9}, None, False),
    ],
    ids=["parameters", "too many parameters", "file and cache", "one byte more", "device file failed"],
)
def test_budget_takes_the_real_file_and_the_cache(
    limit: dict[str, int], file_bytes: int | None, expected: bool
) -> None:
    over = over_budget(budget(**limit), parameters=1000, shape=SHAPE, device_file_bytes=file_bytes)
    assert (over == ()) is expected


def test_budget_takes_what_was_measured_and_names_every_reason() -> None:
    limits: dict[str, Any] = {"max_bytes": 1, "memory_bytes": 10**6, "speed": Speed(minimum_tokens_per_s=10)}
    over = over_budget(
        budget(**limits), parameters=1, shape=SHAPE, device_file_bytes=5000, peak_memory_bytes=10**6 + 1,
        decode_tokens_per_s=9.5,
    )  # fmt: skip
    assert over == (
        f"file and KV cache at 100 tokens take {5000 + CACHE_BYTES:,} bytes, more than 1",
        "its process held 1,000,001 bytes, more than 1,000,000",
        "it decodes 9.5 tokens/s, less than 10",
    )


def test_manifest_is_checked_without_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from foundry.engine.export.manifest import check_folder; "
        f"check_folder(Path({json.dumps(str(folder))})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
