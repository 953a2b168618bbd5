"""Examples of what the service answers, as the records that it sends; a test holds each against its schema."""

from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from api.errors import Problem
from api.examples import EXAMPLES
from api.health import Alive, Readiness
from api.targets import FormatName
from foundry.spec import access, forecast, library, lifecycle, resources, webhooks
from foundry.spec.estimate import FormatEstimate, TargetEstimate
from foundry.spec.evaluation import Evaluation, EvaluationResult, EvaluationSpec
from foundry.spec.job import JobSpec
from foundry.spec.measurement import Measurement
from foundry.spec.report import Cost, JobReport
from foundry.spec.suite import SuiteResult, TaskResult
from foundry.spec.target import Budget
from foundry.spec.variant import Artifact, Lineage, Metrics, VariantManifest
from foundry.spec.weights import Shape

_AT = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
_TAIL = "05rz3k8m1v7q2x9c4b6n0t5w"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_JOB, _VARIANT, _DATASET, _MODEL = (f"{prefix}_{_TAIL}" for prefix in ("job", "var", "ds", "mdl"))
_KEY, _MEMBER, _PROJECT, _UPLOAD = (f"{prefix}_{_TAIL}" for prefix in ("key", "mem", "prj", "up"))
_TEACHER = Shape(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, head_dim=64, vocab=128_256, tied=True)
_STUDENT = _TEACHER.model_copy(update={"layers": 14, "hidden": 1024, "ffn": 3072})
_PARAMETERS, _FILE_BYTES = 298_000_000, 214_000_000
_BUDGET = Budget(target="kiosk", format="gguf:q4_k_m", context_tokens=2048, max_bytes=300_000_000)
_FILE = Artifact(path="kiosk-q4_k_m.gguf", bytes=_FILE_BYTES, sha256=_SHA256, format="gguf:q4_k_m")
_MANIFEST = Artifact(path="manifest.json", bytes=8_412, sha256=_SHA256)
_METRICS = Metrics(
    model="distilled", parameters=_PARAMETERS, held_out_loss=2.31, perplexity=10.07, bits_per_byte=0.78,
    kl_to_teacher=0.12, top1_agreement_ratio=0.87, tokens=65_536, documents=412,
    intervals={"held_out_loss": (2.27, 2.35)},
)  # fmt: skip
_SUITE = SuiteResult(
    suite="quick", model=_VARIANT, limit=100, seed=1234, harness="lm-eval 0.4.13", hardware="NVIDIA H100",
    finished_at=_AT,
    tasks=(
        TaskResult(
            task="winogrande", title="Winogrande", status="done", metric="acc", value=0.63, standard_error=0.0484,
            shots=5, examples=100, examples_of=1267, version="1.0", seconds=12.4,
        ),
    ),
)  # fmt: skip


def problem(status: HTTPStatus) -> dict[str, Any]:
    """What a refusal with this status looks like."""
    code, detail = _PROBLEMS.get(status, (status.phrase.lower().replace(" ", "_"), status.description))
    return Problem(
        type=f"urn:foundry:problem:{code}", title=status.phrase, status=status, detail=detail,
        instance="/v1/customization/jobs", code=code, request_id="5f1c9a7e0b3d4c2f8a6e1d0c9b7a5e3f",
        retryable=status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS),
    ).model_dump(mode="json", exclude_none=True)  # fmt: skip


_PROBLEMS: dict[HTTPStatus, tuple[str, str]] = {
    HTTPStatus.UNAUTHORIZED: (
        "unauthorized", "this needs an API key; send it as the header Authorization: Bearer fdy_..."
    ),
    HTTPStatus.FORBIDDEN: (
        "forbidden", f"this needs the scope jobs:write; your key {_KEY} has jobs:read. Ask an admin of the project"
    ),
    HTTPStatus.NOT_FOUND: ("not_found", f"no job '{_JOB}' in this project"),
    HTTPStatus.CONFLICT: (
        "illegal_transition", f"job {_JOB} is succeeded: there is nothing to cancel; a finished job stays as it is"
    ),
    HTTPStatus.UNPROCESSABLE_ENTITY: ("unknown_target", "unknown target 'smartfone'; did you mean smartphone?"),
    HTTPStatus.TOO_MANY_REQUESTS: ("rate_limited", "this key may send 6,000 requests a minute; go on in 12 s"),
    HTTPStatus.SERVICE_UNAVAILABLE: ("database_unavailable", "the database does not answer: connection refused"),
}  # fmt: skip


@cache
def answers() -> dict[str, Any]:
    """By the name of the schema; a page of records has the schema's name behind `PageOf`."""
    made = {type(record).__name__: record.model_dump(mode="json") for record in _records()}
    pages = {f"PageOf{name}": {"data": [one], "has_more": False, "next": None} for name, one in made.items()}
    return made | pages


def _records() -> list[BaseModel]:
    return [*_of_work(), *_of_variants(), *_of_library(), *_of_access(), *_of_service()]


def _of_work() -> list[BaseModel]:
    spec = JobSpec.model_validate(EXAMPLES["JobSpec"])
    progress = lifecycle.Progress(stage="distill", step=1200, steps=4000, loss=0.41, tokens_per_s=18_500.0)
    target = TargetEstimate(
        target="kiosk", budget=_BUDGET, shape=_STUDENT, parameters=_PARAMETERS, parameters_ratio=0.24,
        cuts_nothing=False, formats=(FormatEstimate(format="gguf:q4_k_m", bytes=_FILE_BYTES),),
        kv_cache_bytes=58_720_256, used_bytes=272_720_256, budget_ratio=0.909, bytes_read_per_token=198_000_000,
    )  # fmt: skip
    run = forecast.RunForecast(memory_bytes=7_200_000_000, disk_bytes=9_100_000_000, training_operations=1.8e17)
    return [
        resources.Job(
            id=_JOB, name="kiosk assistant", status=lifecycle.Status.RUNNING, is_terminal=False, spec=spec,
            stage="distill", progress=progress, attempt=1, created_at=_AT, started_at=_AT,
        ),
        forecast.JobEstimate(
            family="llama", teacher_shape=_TEACHER, teacher_parameters=1_236_000_000, targets=(target,), run=run
        ),
        lifecycle.JobEvent(
            id=f"evt_{_TAIL}", job_id=_JOB, seq=7, attempt=1, type=lifecycle.EventType.PROGRESS, level="info",
            created_at=_AT, message="distill 1200/4000", data=progress.model_dump(exclude_none=True),
        ),
        resources.Attempt(attempt=1, worker="gpu-3:4211", started_at=_AT),
        resources.JobCheckpoint(seq=41, attempt=1, stage="distill", step=1200, created_at=_AT),
        resources.JobMetrics(
            seq=42, attempt=1, created_at=_AT, stage="distill", step=1200, steps=4000, values={"loss": 0.41}
        ),
        JobReport(
            made_at=_AT, status="succeeded", spec=spec, data_sha256=_SHA256, versions={"foundry": "0.1.0"}, stages=(),
            targets=(),
            cost=Cost(
                seconds=8_100.0, attempts=1, hardware="NVIDIA H100", accelerated=True, trained_tokens=20_000_000,
                scored_tokens=65_536,
            ),
        ),
        Evaluation(
            id=f"eval_{_TAIL}", name="", status=lifecycle.Status.SUCCEEDED, is_terminal=True,
            spec=EvaluationSpec.model_validate(EXAMPLES["EvaluationSpec"]), attempt=1,
            result=EvaluationResult(benchmarks=_SUITE), created_at=_AT, started_at=_AT, finished_at=_AT,
        ),
    ]  # fmt: skip


def _of_variants() -> list[BaseModel]:
    lineage = Lineage(
        teacher=_MODEL, teacher_sha256=_SHA256, data=_DATASET, data_sha256=_SHA256, versions={"foundry": "0.1.0"}
    )
    return [
        resources.Variant(
            id=_VARIANT, job_id=_JOB, target="kiosk", parameters=_PARAMETERS, fits_budget=True,
            bytes=_FILE_BYTES + _MANIFEST.bytes, manifest_sha256=_SHA256, files=(_FILE, _MANIFEST), created_at=_AT,
        ),
        VariantManifest(
            target="kiosk", family="llama", shape=_STUDENT, parameters=_PARAMETERS, budget=_BUDGET, fits_budget=True,
            created_at=_AT, spec=JobSpec.model_validate(EXAMPLES["JobSpec"]), lineage=lineage, metrics=(_METRICS,),
            failed_formats={}, files=(_FILE,),
        ),
        resources.VariantLineage(
            variant_id=_VARIANT, job_id=_JOB, teacher=_MODEL, model_id=_MODEL, teacher_sha256=_SHA256,
            dataset_id=_DATASET, data_sha256=_SHA256, versions={"foundry": "0.1.0"}, aliases=("kiosk-stable",),
        ),
        Measurement(
            id=f"msr_{_TAIL}", variant_id=_VARIANT, device="the kiosk in the hall", target="kiosk", context_tokens=2048,
            metrics=_METRICS.model_copy(update={"model": "gguf:q4_k_m"}), fits_budget=True, key_id=_KEY,
            created_at=_AT,
        ),
        library.Alias(name="kiosk-stable", variant_id=_VARIANT, updated_at=_AT),
    ]  # fmt: skip


def _of_library() -> list[BaseModel]:
    return [
        resources.Dataset(
            id=_DATASET, name="domain.jsonl", format="jsonl", bytes=48_210_112, sha256=_SHA256, documents=21_004,
            created_at=_AT,
        ),
        library.DatasetReport(
            dataset_id=_DATASET, documents=21_004, text_documents=0, completion_documents=21_004, chat_documents=0,
            characters=45_100_210, longest_characters=18_220, duplicate_documents=3, held_out_documents=412,
            warnings=("3 documents are there twice",),
        ),
        library.DatasetRow(
            number=1, key="ticket-1", held_out=False, prompt="Reset the kiosk", completion="Hold both", is_cut=False
        ),
        library.Upload(
            id=_UPLOAD, name="domain.jsonl", purpose="dataset", status="open", bytes=5_000_000_000,
            part_bytes=67_108_864, parts=75, received_bytes=67_108_864, missing_parts=(2, 3), created_at=_AT,
            expires_at=_AT,
        ),
        library.UploadPart(number=1, bytes=67_108_864, sha256=_SHA256),
        library.Model(
            id=_MODEL, name="my teacher", kind="hub", source="org/name@0123456789abcdef0123456789abcdef01234567",
            created_at=_AT,
        ),
        library.ModelFamily(
            name="llama", model_types=("llama",), gguf_architecture="llama", has_experts=False
        ),
        resources.Target(
            name="kiosk", description="the kiosk in the hall", custom=True, max_bytes=300_000_000, context_tokens=2048
        ),
        FormatName(name="gguf:q4_k_m", container="gguf", quantisation="q4_k_m"),
    ]  # fmt: skip


def _of_access() -> list[BaseModel]:
    key: dict[str, Any] = {
        "id": _KEY, "project_id": _PROJECT, "name": "nightly build", "created_at": _AT,
        "scopes": (access.Scope.JOBS_READ, access.Scope.JOBS_WRITE),
    }  # fmt: skip
    issued = access.IssuedKey(**key, key=f"fdy_{_TAIL}_{_SHA256}")
    project = access.Project(id=_PROJECT, name="speech-team", quota=access.Quota(active_jobs=10), created_at=_AT)
    return [
        access.ApiKey(**key), issued, project, access.NewProject(project=project, admin_key=issued),
        access.Member(id=_MEMBER, name="ada@example.org", role=access.Role.EDITOR, created_at=_AT),
        access.AuditEvent(
            id=f"aud_{_TAIL}", action="jobs.cancel", object_id=_JOB, key_id=_KEY, request_id="5f1c9a7e0b3d",
            created_at=_AT,
        ),
        access.Usage(
            since=_AT, until=_AT, jobs_submitted=12, jobs_by_status={"succeeded": 11, "failed": 1},
            evaluations_submitted=4, run_seconds=86_400.0, dataset_bytes=48_210_112, model_bytes=0, upload_bytes=0,
            variant_bytes=3_100_000_000,
        ),
        access.Limits(
            quota=access.Quota(active_jobs=10), active_jobs=2, stored_bytes=3_148_210_112,
            run_seconds_this_month=86_400.0, requests_per_minute=6000, largest_upload_bytes=20_000_000_000,
        ),
    ]  # fmt: skip


def _of_service() -> list[BaseModel]:
    endpoint: dict[str, Any] = {
        "id": f"whe_{_TAIL}", "url": "https://example.org/foundry", "events": ("job.succeeded",), "enabled": True,
        "created_at": _AT,
    }  # fmt: skip
    return [
        webhooks.WebhookEndpoint(**endpoint), webhooks.IssuedEndpoint(**endpoint, secret="whsec_c2VjcmV0"),
        webhooks.WebhookDelivery(
            id=f"whd_{_TAIL}", endpoint_id=endpoint["id"], type="job.succeeded", status="delivered", tries=1,
            response_status=204, created_at=_AT, delivered_at=_AT,
        ),
        Alive(status="ok"), Readiness(status="ok", checks={"database": "ok", "artifacts": "ok"}),
    ]  # fmt: skip
