"""Examples of request bodies for the OpenAPI document, by the name of their schema; a test reads each as its record."""

from typing import Any

EXAMPLES: dict[str, Any] = {
    "JobSpec": {
        "teacher": "mdl_05rz3k8m1v7q2x9c4b6n0t5w",
        "data": "ds_05rz3k8m1v7q2x9c4b6n0t5w",
        "targets": ["smartphone", {"name": "kiosk", "max_bytes": 300_000_000}],
        "distill": {"tokens": 20_000_000},
        "formats": ["safetensors", "gguf:q4_k_m"],
    },
    "EvaluationSpec": {"model": "var_05rz3k8m1v7q2x9c4b6n0t5w", "suite": "quick", "limit": 100},
    "CloneBody": {"changes": {"distill": {"tokens": 40_000_000}, "seed": 1}},
    "UploadBody": {"name": "domain.jsonl", "purpose": "dataset", "bytes": 5_000_000_000},
    "ModelBody": {
        "name": "my teacher",
        "source": {"kind": "hub", "repository": "org/name", "revision": "0123456789abcdef0123456789abcdef01234567"},
    },
    "TargetBody": {"description": "the kiosk in the hall", "max_bytes": 300_000_000, "context_tokens": 4096},
    "NewMeasurement": {
        "manifest_sha256": "0" * 64,
        "metrics": {
            "model": "gguf:q4_k_m",
            "file_bytes": 4_700_000,
            "peak_memory_bytes": 80_000_000,
            "decode_tokens_per_s": 41.5,
            "hardware": "Cortex-A76, 4 threads",
            "runtime": "xllamacpp 2026.10.11549",
        },
        "context_tokens": 2048,
        "device": "the kiosk in the hall",
    },
    "AliasBody": {"variant_id": "var_05rz3k8m1v7q2x9c4b6n0t5w"},
    "EndpointBody": {"url": "https://example.org/foundry", "events": ["job.succeeded", "job.failed"]},
    "EndpointChange": {"enabled": False},
    "ProjectBody": {"name": "speech-team", "quota": {"active_jobs": 10, "stored_bytes": 1_000_000_000_000}},
    "QuotaBody": {"quota": {"active_jobs": 20}},
    "MemberBody": {"name": "ada@example.org", "role": "editor"},
    "RoleBody": {"role": "viewer"},
    "KeyBody": {"name": "nightly build", "scopes": ["jobs:read", "jobs:write"], "lives_s": 7_776_000},
    "RotateBody": {"grace_s": 3600},
}
