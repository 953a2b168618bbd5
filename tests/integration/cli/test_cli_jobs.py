"""The commands that talk to a service, as a person types them, against gunicorn on a real socket."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from foundry.store.artifacts import LocalArtifacts
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.settings import Settings
from tests.checkpoints import write_checkpoint
from tests.integration.cli.upped import Service, command, up
from tests.unit.client.worker import publish, take

pytestmark = pytest.mark.integration
FILES = {
    "kiosk-q4_k_m.gguf": os.urandom(3_000_000),
    "safetensors/model.safetensors": os.urandom(1_000_000),
    "README.md": b"card",
}


def test_a_job_from_submit_to_download_at_the_command_line(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "teacher")
    (tmp_path / "text.jsonl").write_text('{"text": "hello"}\n')
    spec = {"teacher": "teacher", "data": "./text.jsonl", "targets": [{"name": "kiosk", "max_params": 20_000}]}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**spec, "targets": ["toaster"]}))

    with up(tmp_path, "--no-worker") as service:
        refused = _foundry(service, "submit", "bad.yaml")
        assert refused.returncode == 1 and "/targets/0" in refused.stderr and "request id" in refused.stderr

        submitted = _foundry(service, "submit", "spec.yaml")
        job_id = submitted.stdout.strip()
        assert submitted.returncode == 0 and f"foundry watch {job_id}" in submitted.stderr
        assert ": 1 document, 18 B" in submitted.stderr
        unwanted = json.loads(_foundry(service, "submit", "spec.yaml", "--json").stdout)["id"]
        assert _foundry(service, "cancel", unwanted).stdout == f"{unwanted} cancelled\n"
        assert _foundry(service, "watch", unwanted).returncode == 1
        listed = json.loads(_foundry(service, "jobs", "--json").stdout)
        assert [(j["id"], j["status"]) for j in listed] == [(unwanted, "cancelled"), (job_id, "queued")]
        table = _foundry(service, "jobs", "--status", "queued").stdout
        assert job_id in table and unwanted not in table and "kiosk" in table
        assert "has no variants" in _foundry(service, "download", job_id).stderr

        _work(service.home, job_id, tmp_path)
        watched = _foundry(service, "watch", job_id)
        assert (
            watched.returncode == 0
            and "kiosk-q4_k_m.gguf" in watched.stdout
            and f"foundry download {job_id}" in watched.stderr
        )
        home = tmp_path / "variants" / "kiosk"
        home.mkdir(parents=True)
        (home / "kiosk-q4_k_m.gguf.partial").write_bytes(FILES["kiosk-q4_k_m.gguf"][:1_000_001])
        brought = _foundry(service, "download", job_id, "-o", "variants")
        assert brought.returncode == 0 and brought.stdout == "variants/kiosk\n"
        assert {path: (home / path).read_bytes() for path in FILES} == FILES
        log = (service.home / "logs" / "api.log").read_text()
        assert '"status": 206' in log and not list(home.rglob("*.partial"))


def _foundry(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FOUNDRY_HOME": str(service.home)}
    return subprocess.run(
        command(*arguments), cwd=service.home.parent, env=environment, capture_output=True, text=True, timeout=60
    )


def _work(home: Path, job_id: str, folder: Path) -> None:
    """Do a worker's part on the service's own database."""
    settings = Settings(home=home)
    database = Database(settings.database_url)
    try:
        jobs = Jobs(database, settings)
        publish(jobs, LocalArtifacts(settings.artifacts), take(jobs, job_id), FILES, folder)
    finally:
        database.close()
