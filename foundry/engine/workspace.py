"""The folder of one job. A stage is done when its done.json exists; everything is written aside and renamed into place.

spec.json  inputs.json  events.jsonl  micro_batch.json
stages/correct/{done.json, teacher/}                              teacher/ only when the correction was kept
stages/prune/{done.json, importance.json, .scratch/, TARGET/{plan.json, .growing/, model/}}   dots only while it runs
stages/distill/{done.json, checkpoints/, TARGET/{model/, history.json}}
stages/lora/{done.json, TARGET/{adapter/, model/}}
stages/evaluate/{done.json, leaks.json, importance.json, benchmarks.json, TARGET/{metrics.json, samples.json}}
stages/export/{done.json, TARGET/variant/}
result.json  report/{report.html, report.md, report.json}
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import StageName
from foundry.spec.record import Record, parse

_KEPT_CHECKPOINTS = 2
_MICRO_BATCH = "micro_batch.json"


class Inputs(Record):
    """The spec's teacher and data as this machine finds them. Written before the run starts."""

    teacher: str
    """A folder, or the hub id of the spec."""
    data: str
    data_sha256: str
    micro_batch_divisor: int = 1
    """Micro-batches are so many times smaller than what should fit: a run before this one ran out of memory."""


class Workspace:
    """One job's folder and the only code that knows its layout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path, spec: JobSpec, inputs: Inputs) -> "Workspace":
        """Make the folder, or open it again when it belongs to the same spec and inputs."""
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / "inputs.json", inputs.model_dump(mode="json"))
        write_json(root / "spec.json", spec.model_dump(mode="json"))
        return cls(root)

    @property
    def spec(self) -> JobSpec:
        return parse(JobSpec, read_json(self.root / "spec.json"))

    @property
    def inputs(self) -> Inputs:
        return parse(Inputs, read_json(self.root / "inputs.json"))

    def stage(self, stage: StageName, target: str | None = None) -> Path:
        """The folder of a stage, or of one target within it; made when missing."""
        folder = self.root / "stages" / stage / (target or "")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: StageName) -> bool:
        return (self.root / "stages" / stage / "done.json").exists()

    def finish(self, stage: StageName, **result: Any) -> None:
        """Mark a stage as done; its checkpoints are of no more use."""
        write_json(self.stage(stage) / "done.json", {"completed_at": datetime.now(UTC).isoformat(), "result": result})
        shutil.rmtree(self.stage(stage) / "checkpoints", ignore_errors=True)

    def result(self, stage: StageName) -> dict[str, Any]:
        """What `finish` recorded; empty when the stage was not run."""
        path = self.root / "stages" / stage / "done.json"
        return dict(read_json(path)["result"]) if path.exists() else {}

    @property
    def teacher(self) -> str:
        """The teacher that the students learn from: the corrected one when the correction was kept."""
        corrected = self.root / "stages" / "correct" / "teacher"
        return str(corrected) if corrected.is_dir() else self.inputs.teacher

    def student(self, target: str) -> Path:
        """The student as the latest finished stage left it."""
        for stage in ("lora", "distill", "prune"):
            folder = self.root / "stages" / stage / target / "model"
            if folder.is_dir():
                return folder
        raise FileNotFoundError(f"no student for target {target!r} in {self.root}")

    @property
    def micro_batch_cap(self) -> int | None:
        """The most sequences that a training stage may take at a time; None until a run ended for want of memory."""
        return self._micro_batch().get("cap")

    def micro_batch_rows(self, stage: StageName) -> int | None:
        """How many sequences a training stage takes at a time; None until it has found out."""
        found = self._micro_batch()
        return found.get("rows") if found.get("stage") == stage else None

    def note_micro_batch(self, stage: StageName, rows: int) -> None:
        """Remember what fits: a stage that starts again must add up its gradients in the same order."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / _MICRO_BATCH, self._micro_batch() | {"stage": stage, "rows": rows})

    def halve_micro_batch(self) -> bool:
        """Cap the micro-batch at half of what the last run took; False when there is nothing to halve."""
        rows = self._micro_batch().get("rows", 1)
        if rows > 1:
            write_json(self.root / _MICRO_BATCH, {"cap": rows // 2})
        return bool(rows > 1)

    def _micro_batch(self) -> dict[str, Any]:
        path = self.root / _MICRO_BATCH
        return dict(read_json(path)) if path.exists() else {}

    def save_checkpoint(self, stage: StageName, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, hash it, and make it the newest checkpoint; the two newest are kept."""
        checkpoints = self.stage(stage) / "checkpoints"
        final = checkpoints / f"step-{step:09d}"
        with new_folder(final) as folder:
            write(folder)
            write_json(folder / "digests.json", {p.name: sha256_of(p) for p in sorted(folder.iterdir())})
        for old in sorted(checkpoints.glob("step-*"))[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        return final

    def checkpoints(self, stage: StageName) -> Iterator[tuple[int, Path]]:
        """Undamaged checkpoints, newest first, with their step."""
        for folder in sorted((self.root / "stages" / stage / "checkpoints").glob("step-*"), reverse=True):
            if _is_intact(folder):
                yield int(folder.name.removeprefix("step-")), folder


def _is_intact(folder: Path) -> bool:
    try:
        digests = read_json(folder / "digests.json")
        return all(sha256_of(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill that appears under its name only when complete; what stood there before is replaced."""
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        publish(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def publish(aside: Path, final: Path) -> None:
    """Flush a folder that is complete and give it its name; what stood there before is replaced."""
    for path in aside.rglob("*"):
        sync(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    sync(final.parent)


def write_json(path: Path, document: Any) -> None:
    """Write aside, flush to disk, rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
