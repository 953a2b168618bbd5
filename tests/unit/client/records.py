"""The service's objects as JSON, with the fields that the tests do not care about filled in."""

import json
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from tests.unit.client.tiny_service import Seen, TinyService, document, ranged

AT = "2026-01-02T03:04:05Z"
SPEC: dict[str, Any] = {"teacher": "/models/teacher", "data": "ds_1", "targets": ["smartphone"]}


def job(status: str = "queued", **fields: Any) -> dict[str, Any]:
    terminal = status in ("succeeded", "failed", "cancelled")
    base = {
        "id": "job_1",
        "name": "",
        "status": status,
        "is_terminal": terminal,
        "spec": SPEC,
        "attempt": 1,
        "created_at": AT,
    }
    return {**base, **fields}


def event(seq: int, type: str, message: str = "", level: str = "info", **data: Any) -> dict[str, Any]:
    return {
        "id": f"evt_{seq}", "job_id": "job_1", "seq": seq, "attempt": 1, "type": type, "level": level,
        "created_at": AT, "message": message or type, "data": data,
    }  # fmt: skip


def page(*items: Mapping[str, Any], next: str | None = None) -> dict[str, Any]:
    return {"data": list(items), "has_more": next is not None, "next": next}


def artifact(path: str, content: bytes) -> dict[str, Any]:
    return {"path": path, "bytes": len(content), "sha256": sha256(content).hexdigest()}


def publish(service: TinyService, files: Mapping[str, bytes]) -> bytes:
    """Let the service have a variant `var_1` with these files; returns its manifest."""
    listed = [artifact(path, content) for path, content in files.items()]
    manifest = json.dumps({"format_version": 1, "files": listed}).encode()
    service.on("/v1/variants/var_1", document({
        "id": "var_1", "job_id": "job_1", "target": "smartphone", "parameters": 10, "fits_budget": True,
        "bytes": sum(map(len, files.values())), "manifest_sha256": sha256(manifest).hexdigest(),
        "files": [artifact("manifest.json", manifest), *listed], "created_at": AT,
    }))  # fmt: skip
    for path, content in {**files, "manifest.json": manifest}.items():
        service.routes[file_path(path)] = partial(ranged, content)
    return manifest


def file_path(path: str) -> str:
    return f"/v1/variants/var_1/files/{path}"


def asked_for(service: TinyService, path: str) -> list[Seen]:
    return [seen for seen in service.seen if seen.path == file_path(path)]
