"""What `foundry run` refuses before anything is computed. A whole run: tests/integration/cli/test_cli_whole_run.py."""

import fcntl
from pathlib import Path

import pytest
import yaml

from foundry.cli.running import check, open_workspace
from foundry.engine.workspace import Inputs
from foundry.errors import StateConflict
from foundry.spec.job import JobSpec
from tests.checkpoints import write_checkpoint
from tests.unit.cli.conftest import Command


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, object]:
    write_checkpoint(tmp_path / "teacher")
    (tmp_path / "text.jsonl").write_text('{"text": "hello"}\n')
    return {
        "teacher": str(tmp_path / "teacher"),
        "data": str(tmp_path / "text.jsonl"),
        "targets": [{"name": "kiosk", "max_params": 20_000}],
    }


def _file(folder: Path, spec: dict[str, object]) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher": "./gone"}, "/teacher"),
        ({"data": "./gone.jsonl"}, "gone.jsonl"),
        ({"targets": ["toaster"]}, "/targets/0"),
        ({"targets": [{"name": "kiosk", "max_params": 10}]}, "allow at least"),
        ({"formats": ["onnx"]}, "gguf:q4_k_m"),
    ],
    ids=["teacher", "data", "target", "budget", "format"],
)
def test_run_refuses_what_the_service_would_and_makes_no_folder(
    foundry: Command, tmp_path: Path, spec: dict[str, object], change: dict[str, object], says: str
) -> None:
    result = foundry("run", _file(tmp_path, {**spec, **change}), "-o", tmp_path / "out")
    assert result.code == 1 and says in result.err and not (tmp_path / "out").exists()


def test_run_names_the_line_of_malformed_data(foundry: Command, tmp_path: Path, spec: dict[str, object]) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "hello"}\n{"txet": "hello"}\n')
    result = foundry("run", _file(tmp_path, spec), "-o", tmp_path / "out")
    assert result.code == 1 and "line 2" in result.err and "/data" in result.err


def test_run_refuses_pickled_weights(foundry: Command, tmp_path: Path, spec: dict[str, object]) -> None:
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    result = foundry("run", _file(tmp_path, spec), "-o", tmp_path / "out")
    assert result.code == 1 and "pickled weights" in result.err and "save_pretrained" in result.err


def test_run_refuses_a_folder_that_holds_other_things(
    foundry: Command, tmp_path: Path, spec: dict[str, object]
) -> None:
    result = foundry("run", _file(tmp_path, spec), "-o", tmp_path / "teacher")
    assert result.code == 1 and "holds other things (config.json" in result.err
    assert sorted(p.name for p in (tmp_path / "teacher").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_run_refuses_a_folder_where_another_run_is_at_work(
    foundry: Command, tmp_path: Path, spec: dict[str, object]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = foundry("run", _file(tmp_path, spec), "-o", folder)
    assert result.code == 1 and "another `foundry run`" in result.err


def _inputs(spec: JobSpec, **changes: str) -> Inputs:
    return check(spec).model_copy(update=changes)


def test_run_opens_its_folder_again_for_the_same_spec_and_data(tmp_path: Path, spec: dict[str, object]) -> None:
    record = JobSpec.model_validate(spec)
    first = open_workspace(_made(tmp_path / "out"), record, _inputs(record))
    first.finish("prune")
    assert open_workspace(first.root, record, _inputs(record)).is_done("prune")


def test_run_refuses_its_folder_for_another_spec_and_names_what_changed(
    tmp_path: Path, spec: dict[str, object]
) -> None:
    record = JobSpec.model_validate(spec)
    folder = _made(tmp_path / "out")
    open_workspace(folder, record, _inputs(record))
    with pytest.raises(StateConflict, match=r"another spec \(seed changed since\)") as refused:
        open_workspace(folder, record.model_copy(update={"seed": 7}), _inputs(record))
    assert refused.value.pointer == "/seed"
    with pytest.raises(StateConflict, match="data changed since"):
        open_workspace(folder, record, _inputs(record, data_sha256="0" * 64))


def test_run_says_when_the_folder_is_of_another_version(tmp_path: Path, spec: dict[str, object]) -> None:
    record = JobSpec.model_validate(spec)
    folder = _made(tmp_path / "out")
    open_workspace(folder, record, _inputs(record))
    (folder / "spec.json").write_text('{"teacher": "a", "flavour": "old"}')
    with pytest.raises(StateConflict, match="another version"):
        open_workspace(folder, record, _inputs(record))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
