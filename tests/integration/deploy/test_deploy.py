"""What deploy/ describes: the files are sound, and every command of theirs works, here outside of containers."""

import json
import os
import re
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.metrics import Meters as ApiMeters
from foundry.client.client import Foundry
from foundry.spec.lifecycle import Status
from foundry.store.settings import Settings
from foundry.store.settings_page import page
from tests.integration.workers.works import SCRIPT, Works, wait_until
from tests.servers import Postgres, Redis, free_port
from workers.meters import Meters as WorkerMeters

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
KUBERNETES = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "foundry.yaml").read_text()))
OURS = ("prepare", "api", "worker")


def containers() -> Iterator[dict[str, Any]]:
    for document in KUBERNETES:
        pod = document.get("spec", {}).get("template", {}).get("spec", {})
        yield from (*pod.get("initContainers", ()), *pod.get("containers", ()))


def test_kubernetes_takes_every_manifest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(ROOT / "deploy/kubernetes/foundry.yaml")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_both_descriptions_run_the_same_commands() -> None:
    assert {c["name"]: c["command"] for c in containers()} == {n: COMPOSE["services"][n]["command"] for n in OURS}


def test_every_variable_that_is_set_is_a_setting() -> None:
    known = {f"FOUNDRY_{name.upper()}" for name in Settings.model_fields}
    named = {name for service in OURS for name in COMPOSE["services"][service]["environment"]}
    named |= {entry["name"] for c in containers() for entry in c["env"]} | set(KUBERNETES[0]["data"])
    named |= set(re.findall(r"FOUNDRY_[A-Z_]+(?==)", (ROOT / "docker" / "service.Dockerfile").read_text()))
    assert {name for name in named if name.startswith("FOUNDRY_")} <= known


def test_services_depend_on_services_and_mount_volumes_that_there_are() -> None:
    for name, service in COMPOSE["services"].items():
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"]), name
        named = {volume.split(":")[0] for volume in service.get("volumes", ()) if volume[0] not in "./$"}
        assert named <= set(COMPOSE["volumes"]), name
        assert ("image" in service) and not service["image"].endswith(":latest"), name


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "foundry.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"foundry_\w+", target["expr"])
    }
    shown = {
        sample
        for registry in (ApiMeters().registry, WorkerMeters().registry)
        for metric in registry.collect()
        for sample in (metric.name, f"{metric.name}_total", f"{metric.name}_bucket")
    }
    assert len(asked) >= 10 and asked <= shown


def test_the_page_of_settings_is_current() -> None:
    written = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m foundry.store.settings_page > docs/reference/settings.md"
    assert "| None |" not in written


@pytest.fixture
def bucket() -> Iterator[Mapping[str, str]]:
    """Variables that lead to a new bucket of a real server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/foundry", method="PUT")).close()
    yield {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y", "FOUNDRY_ARTIFACTS_URL": "s3://foundry/artifacts",
    }  # fmt: skip
    server.stop()


@contextmanager
def running(service: str, environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(command_of(service), cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def command_of(service: str) -> list[str]:
    program, *rest = COMPOSE["services"][service]["command"]
    assert program == "python"
    return [sys.executable, *rest]


def test_the_commands_of_compose_carry_a_job_through_with_its_bytes_in_a_bucket(
    postgres: Postgres, redis_server: Redis, bucket: Mapping[str, str], tmp_path: Path
) -> None:
    """PostgreSQL, Redis and a bucket are real; only the containers are not."""
    port, metrics_port, log = free_port(), free_port(), tmp_path / "log"
    environment = {
        **os.environ, **bucket, "FOUNDRY_HOME": str(tmp_path / "home"), "FOUNDRY_DATABASE_URL": postgres.new_database(),
        "FOUNDRY_BROKER_URL": redis_server.url, "FOUNDRY_PORT": str(port), "FOUNDRY_METRICS_PORT": str(metrics_port),
        "FOUNDRY_RUN_COMMAND": " ".join(SCRIPT), "FOUNDRY_DOWNLOADS": "presigned",
    }  # fmt: skip
    for _ in range(2):  # also when it was done before
        subprocess.run(command_of("prepare"), cwd=ROOT, env=environment, check=True, timeout=60)
    key = (tmp_path / "home" / "key").read_text().strip()
    with ExitStack() as stack:
        for service in ("api", "worker"):
            stack.enter_context(running(service, environment, log))
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), lambda: log.read_text()[-2000:])
        client = stack.enter_context(Foundry(f"http://127.0.0.1:{port}", key))
        data = tmp_path / "data.jsonl"
        data.write_text('{"text": "one"}\n')
        dataset = client.datasets.upload(data)
        works = Works(environment["FOUNDRY_DATABASE_URL"], tmp_path / "home", broker_url=redis_server.url)
        works.project_id = works_project(works)
        works.dataset = works.datasets.get(works.project_id, dataset.id)
        job_id = works.submit()
        works.await_status(job_id, Status.SUCCEEDED)
        [variant_id] = client.jobs.get(job_id).variant_ids
        client.variants.download(variant_id, to=tmp_path / "variant")  # by links into the bucket
        assert (tmp_path / "variant" / "safetensors" / "model.safetensors").read_bytes() == b"kiosk" * 1000
        files = client.variants.get(variant_id).files
        assert files and not any(works.artifacts.exists(file.sha256) for file in files)  # none lies in the folder
        shown = urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics").read().decode()
        assert 'foundry_attempts_total{code="",ending="Publish"} 1.0' in shown
        assert 'foundry_stage_seconds_count{stage="distill"} 1.0' in shown
        works.close()


def works_project(works: Works) -> str:
    """The project that `prepare` made."""
    from foundry.store.keys import Keys

    return Keys(works.database, b"").ensure_default_project()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
