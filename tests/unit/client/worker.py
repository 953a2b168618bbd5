"""A worker's part in a job, played on the real store: claim, report, publish."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.target import Budget
from foundry.spec.variant import Artifact, Lineage, Metrics, VariantManifest
from foundry.spec.weights import Shape
from foundry.store.artifacts import ArtifactStore
from foundry.store.jobs import Jobs
from foundry.store.records import Claim, NewVariant


def progress(step: int, steps: int) -> RunEvent:
    """One step of the distillation."""
    data = {"stage": "distill", "step": step, "steps": steps, "loss": 2.5, "tokens_per_s": 1000.0, "left_s": 1.0}
    return RunEvent(type=EventType.PROGRESS, message=f"distill {step}/{steps}", data=data)


def take(jobs: Jobs, job_id: str) -> Claim:
    """Claim a queued job."""
    claim = jobs.claim("test-worker", job_id)
    assert claim is not None
    return claim


def publish(
    jobs: Jobs, artifacts: ArtifactStore, claim: Claim, contents: Mapping[str, bytes], folder: Path
) -> VariantManifest:
    """Store these files as the job's one variant and end the job."""
    files = [_keep(artifacts, folder, path, content) for path, content in contents.items()]
    manifest = _manifest(claim.spec, files)
    document = json.dumps(manifest.model_dump(mode="json")).encode()
    kept = _keep(artifacts, folder, "manifest.json", document)
    jobs.succeed(claim, [NewVariant(manifest=manifest, manifest_sha256=kept.sha256, files=(kept, *files))])
    return manifest


def _keep(artifacts: ArtifactStore, folder: Path, path: str, content: bytes) -> Artifact:
    staged = folder / "staged"
    staged.write_bytes(content)
    artifacts.put(staged)
    form = "gguf:q4_k_m" if path.endswith(".gguf") else None
    return Artifact(path=path, bytes=len(content), sha256=sha256(content).hexdigest(), format=form)


def _manifest(spec: JobSpec, files: list[Artifact]) -> VariantManifest:
    target = spec.targets[0]
    assert isinstance(target, CustomTarget)
    shape = Shape(layers=1, hidden=8, ffn=16, heads=1, kv_heads=1, head_dim=8, vocab=96, tied=True)
    return VariantManifest(
        target=target.name, family="llama", shape=shape, parameters=1000,
        budget=Budget(target=target.name, format="gguf:q4_k_m", context_tokens=64, max_params=target.max_params),
        fits_budget=True, created_at=datetime.now(UTC), spec=spec,
        lineage=Lineage(
            teacher=spec.teacher, teacher_sha256="0" * 64, data=spec.data, data_sha256="0" * 64, versions={}
        ),
        metrics=(Metrics(model="distilled", parameters=1000, held_out_loss=2.5, perplexity=12.2),),
        failed_formats={}, files=tuple(files),
    )  # fmt: skip
