"""Everything that a workspace knows of its job, as one record. A failed job has a report too, of what there is."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundry.engine.evaluate.benchmarks import NAME as BENCHMARKS
from foundry.engine.export.manifest import NAME as MANIFEST
from foundry.engine.export.manifest import versions
from foundry.engine.journal import ATTEMPT, CANCELLED, FAILED, Entry, read_journal
from foundry.engine.report.spending import cost_of, seconds_of
from foundry.engine.workspace import Workspace, read_json
from foundry.errors import FoundryError
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import STAGES
from foundry.spec.record import R, parse
from foundry.spec.report import Curve, Importance, JobReport, Kept, Leaked, Remark, Sample, StageRun, TargetReport
from foundry.spec.suite import SuiteResult
from foundry.spec.variant import Metrics, PrunePlan, VariantManifest

_LOUD = ("warning", "error")


def gather(workspace: Workspace) -> JobReport:
    """Read the whole workspace. Raises what `Workspace.spec` raises when it is none."""
    spec, entries = workspace.spec, read_journal(workspace.root)
    targets = tuple(_target(workspace, name) for name in spec.target_names)
    attempt: dict[str, Any] = next((e.data for e in reversed(entries) if e.type == ATTEMPT), {})
    failure, done = _noted(entries, FAILED), workspace.is_done("export")
    cancelled = _noted(entries, CANCELLED)
    stages = tuple(_stages(workspace, spec, entries, failed=failure is not None))
    manifest = next((m for m in (_manifest(workspace, name) for name in spec.target_names) if m), None)
    return JobReport(
        made_at=datetime.now(UTC),
        status="succeeded" if done else "failed" if failure else "cancelled" if cancelled else "unfinished",
        reason=None if done else failure or cancelled,
        spec=spec,
        data_sha256=workspace.inputs.data_sha256,
        teacher_sha256=manifest.lineage.teacher_sha256 if manifest else None,
        versions=versions(),
        dtype=attempt.get("dtype"),
        stages=stages,
        targets=targets,
        importance=_read(workspace.root / "stages" / "evaluate" / "importance.json", Importance),
        benchmarks=tuple(_records(workspace.root / "stages" / "evaluate" / BENCHMARKS, SuiteResult)),
        held_out_documents=workspace.result("evaluate").get("documents"),
        leaks=tuple(_records(workspace.root / "stages" / "evaluate" / "leaks.json", Leaked)),
        remarks=tuple(_remarks(entries)),
        cost=cost_of(entries, stages, targets),
    )


def _noted(entries: Sequence[Entry], kind: str) -> str | None:
    """How the last attempt ended, in words, when it ended like this; None when a later one began."""
    for entry in reversed(entries):
        if entry.type == kind:
            return str(entry.message)
        if entry.type == ATTEMPT:
            return None
    return None


def _stages(workspace: Workspace, spec: JobSpec, entries: Sequence[Entry], *, failed: bool) -> Iterator[StageRun]:
    """The stages that were begun, in order; the last of a failed run is the one that failed."""
    seconds = seconds_of(entries)
    begun = [stage for stage in STAGES if getattr(spec, stage) is not None and stage in seconds]
    for stage in begun:
        done = workspace.is_done(stage)
        broken = failed and not done and stage == begun[-1]
        yield StageRun(
            stage=stage, status="completed" if done else "failed" if broken else "unfinished", seconds=seconds[stage],
            result=workspace.result(stage),
        )  # fmt: skip


def _target(workspace: Workspace, target: str) -> TargetReport:
    stages = workspace.root / "stages"
    plan = _read(stages / "prune" / target / "plan.json", PrunePlan)
    manifest = _manifest(workspace, target)
    metrics = manifest.metrics if manifest else tuple(_records(stages / "evaluate" / target / "metrics.json", Metrics))
    found: dict[str, Any] = {}
    if plan:
        found |= {
            "teacher_shape": plan.teacher_shape, "shape": plan.shape, "repair": plan.repair,
            "candidates": plan.candidates, "kept": _kept(plan),
        }  # fmt: skip
    if manifest:
        found |= {
            "budget": manifest.budget, "fits_budget": manifest.fits_budget, "parameters": manifest.parameters,
            "failed_formats": manifest.failed_formats, "files": manifest.files,
        }  # fmt: skip
    return TargetReport(
        target=target,
        curves=tuple(_curves(stages, target)),
        metrics=metrics,
        samples=tuple(_records(stages / "evaluate" / target / "samples.json", Sample)),
        **found,
    )


def _kept(plan: PrunePlan) -> Kept:
    return Kept(
        layers=plan.layers, heads=plan.heads, ffn_ratio=plan.shape.ffn / plan.teacher_shape.ffn,
        hidden_ratio=plan.shape.hidden / plan.teacher_shape.hidden,
    )  # fmt: skip


def _manifest(workspace: Workspace, target: str) -> VariantManifest | None:
    return _read(workspace.root / "stages" / "export" / target / "variant" / MANIFEST, VariantManifest)


def _curves(stages: Path, target: str) -> Iterator[Curve]:
    for stage, folder in (("correct", "correct"), ("distill", f"distill/{target}"), ("lora", f"lora/{target}")):
        history = _json(stages / folder / "history.json")
        if isinstance(history, dict):
            yield parse(
                Curve,
                {"stage": stage, "steps": history["steps"], "tokens": history["tokens"], "rows": history["rows"]},
            )


def _remarks(entries: Sequence[Entry]) -> Iterator[Remark]:
    """Warnings and failures, each once: a resumed run says the same again."""
    seen: set[str] = set()
    for entry in entries:
        if entry.level in _LOUD and entry.message not in seen:
            seen.add(entry.message)
            yield Remark(at=entry.at, level=entry.level, stage=str(entry.data.get("stage", "")), message=entry.message)


def _read(path: Path, kind: type[R]) -> R | None:
    """A record, or None when the file is not there or is another version's."""
    try:
        return parse(kind, read_json(path))
    except (OSError, ValueError, FoundryError):
        return None


def _records(path: Path, kind: type[R]) -> list[R]:
    rows = _json(path)
    try:
        return [parse(kind, row) for row in rows] if isinstance(rows, list) else []
    except FoundryError:
        return []


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
