"""The supervisor with real runs: processes that are killed, stopped, deaf, wrong or full."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import update

from foundry.spec.lifecycle import EventType, Status
from foundry.store.database import db_now
from foundry.store.tables import JobRow
from tests import factories
from tests.integration.workers.works import Works, is_alive, kill, wait_until
from workers import folders
from workers.supervisor import Supervisor

pytestmark = pytest.mark.integration
LONG = "steps=2000 delay=0.02"
TWO_TARGETS = ({"name": "kiosk", "max_params": 1_000_000}, {"name": "watch", "max_params": 500_000})


def folders_of(works: Works, job_id: str) -> list[str]:
    job = works.settings.work / job_id
    return sorted(path.name for path in job.iterdir() if path.is_dir()) if job.exists() else []


def test_run_that_is_done_publishes_every_target_with_its_bytes(works: Works) -> None:
    job = works.carry_out(works.submit(targets=TWO_TARGETS))
    assert job.status is Status.SUCCEEDED
    variants = {v.target: v for v in works.variants.list(works.project_id, job_id=job.id).data}
    assert set(variants) == {"kiosk", "watch"} and set(job.variant_ids) == {v.id for v in variants.values()}
    path, artifact = works.variants.file(works.project_id, variants["watch"].id, "safetensors/model.safetensors")
    assert path.read_bytes() == b"watch" * 1000 and artifact.format == "safetensors"
    assert works.variants.manifest(works.project_id, variants["kiosk"].id)["target"] == "kiosk"
    assert works.outcomes(job.id) == ["succeeded"]
    assert not (works.settings.work / job.id).exists()


def test_history_is_complete_and_in_order_when_the_run_is_quick(works: Works) -> None:
    job = works.carry_out(works.submit("steps=12"))
    events = works.events(job.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    kinds = [e.type for e in events if e.type not in (EventType.PROGRESS, EventType.LOG)]
    assert kinds == [
        EventType.SUBMITTED, EventType.STARTED, EventType.STAGE_STARTED, EventType.CHECKPOINT, EventType.CHECKPOINT,
        EventType.STAGE_COMPLETED, EventType.VARIANT_PUBLISHED, EventType.SUCCEEDED,
    ]  # fmt: skip
    assert works.events(job.id, EventType.PROGRESS)[-1].data["step"] == 12  # the last of a stage always passes


def test_progress_is_thinned_out_and_shown_on_the_job(works: Works) -> None:
    job_id = works.submit("steps=100 delay=0.01")
    started = time.monotonic()
    job = works.carry_out(job_id)
    seconds = time.monotonic() - started
    progress = works.events(job_id, EventType.PROGRESS)
    assert 2 <= len(progress) <= seconds / 0.5 + 2
    assert job.progress is not None and (job.progress.step, job.progress.steps) == (100, 100)


def test_killed_run_goes_on_from_its_checkpoint_in_the_next_attempt(works: Works) -> None:
    job_id = works.submit("steps=60 delay=0.02")
    first = works.begin(job_id)
    works.await_checkpoint(job_id, 2)
    kill(works.run_pid(job_id))
    first.join(20)
    assert works.job(job_id).status is Status.QUEUED
    assert "SIGKILL" in works.events(job_id, EventType.ATTEMPT_LOST)[0].message
    job = works.carry_out(job_id)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 2)
    assert works.outcomes(job_id) == ["lost", "succeeded"]
    resumed_from = [event.data["first"] for event in works.events(job_id) if "first" in event.data]
    assert resumed_from[0] == 0 and resumed_from[1] >= 10
    assert not (works.settings.work / job_id).exists()


def test_cancelled_run_writes_a_checkpoint_and_its_folder_goes(works: Works) -> None:
    job_id = works.submit(LONG)
    thread = works.begin(job_id)
    pid = works.run_pid(job_id)
    works.jobs.cancel(works.project_id, job_id)
    job = works.await_status(job_id, Status.CANCELLED)
    thread.join(20)
    assert job.is_terminal and works.outcomes(job_id) == ["cancelled"]
    assert not is_alive(pid)
    assert not (works.settings.work / job_id).exists()


def test_paused_run_goes_on_where_it_stopped_when_resumed(works: Works) -> None:
    job_id = works.submit("steps=80 delay=0.02")
    thread = works.begin(job_id)
    works.await_checkpoint(job_id)
    works.jobs.pause(works.project_id, job_id)
    works.await_status(job_id, Status.PAUSED)
    thread.join(20)
    stopped_at = works.events(job_id, EventType.CHECKPOINT)[-1].data["step"]
    assert folders_of(works, job_id) == ["1"]
    works.jobs.resume(works.project_id, job_id)
    assert works.carry_out(job_id).status is Status.SUCCEEDED
    assert [event.data["first"] for event in works.events(job_id) if "first" in event.data] == [0, stopped_at]
    assert works.outcomes(job_id) == ["paused", "succeeded"]


def test_worker_that_stops_puts_its_job_back_without_costing_an_attempt(works: Works) -> None:
    job_id = works.submit(LONG)
    thread = works.begin(job_id)
    works.await_checkpoint(job_id)
    works.stopping.set()
    thread.join(20)
    assert works.job(job_id).status is Status.QUEUED
    assert works.outcomes(job_id) == ["released"]
    assert works.events(job_id)[-1].type is EventType.REQUEUED


def test_deaf_run_is_killed_with_its_children_when_the_grace_is_over(works: Works) -> None:
    job_id = works.submit(f"{LONG} deaf=1 child=1")
    thread = works.begin(job_id)
    pid = works.run_pid(job_id)
    child = next(event.data["child"] for event in works.events(job_id) if "child" in event.data)
    assert is_alive(child)
    asked_at = time.monotonic()
    works.jobs.cancel(works.project_id, job_id)
    works.await_status(job_id, Status.CANCELLED)
    thread.join(20)
    assert time.monotonic() - asked_at >= works.settings.stop_grace_s
    assert not is_alive(pid) and not is_alive(child)


@pytest.mark.parametrize("frozen", [False, True], ids=["hung", "frozen"])
def test_silent_run_is_killed_and_goes_on_from_its_checkpoint(works: Works, frozen: bool) -> None:
    """The process lives and its lease is renewed: only its silence tells that nothing will come of it."""
    short = Works(works.settings.database_url, works.settings.home, silence_s=8)
    job_id = short.submit("hang=1 steps=6")
    thread = short.begin(job_id)
    pid = short.run_pid(job_id)
    if frozen:
        os.kill(pid, signal.SIGSTOP)
    thread.join(60)
    assert not is_alive(pid)
    lost = short.events(job_id, EventType.ATTEMPT_LOST)[0]
    assert "said nothing for 8 s" in lost.message
    assert short.carry_out(job_id).status is Status.SUCCEEDED
    assert [event.data["first"] for event in short.events(job_id) if "first" in event.data] == [1]
    short.close()


def test_run_without_memory_gets_smaller_micro_batches(works: Works) -> None:
    job_id = works.submit("starve=1")
    assert works.carry_out(job_id).status is Status.QUEUED
    assert works.carry_out(job_id).status is Status.SUCCEEDED
    assert works.outcomes(job_id) == ["lost", "succeeded"]


def test_job_that_needs_more_disk_than_there_is_waits_paused_and_goes_on_when_resumed(works: Works) -> None:
    spec = factories.spec(data=works.dataset.id)
    inputs = factories.inputs(dataset_id=works.dataset.id, disk_bytes=10**18)
    job = works.carry_out(works.jobs.submit(works.project_id, spec, inputs).id)
    assert job.status is Status.PAUSED and job.status_reason is not None
    assert job.status_reason.code == "storage_full" and "1,000,000,000,000,000,000" in job.status_reason.message
    with works.database.write() as session:
        row = session.get_one(JobRow, job.id)
        row.inputs = row.inputs | {"disk_bytes": 1000}
    works.jobs.resume(works.project_id, job.id)
    assert works.carry_out(job.id).status is Status.SUCCEEDED


def test_users_error_fails_at_once_with_what_the_run_said(works: Works) -> None:
    job = works.carry_out(works.submit("end=user_error"))
    assert job.status is Status.FAILED and job.status_reason is not None
    assert (job.status_reason.code, job.status_reason.message) == ("invalid_data", "line 3: not JSON")
    assert works.outcomes(job.id) == ["failed"]
    assert not (works.settings.work / job.id).exists()


def test_crash_is_tried_again_and_fails_with_the_last_words_when_attempts_are_spent(works: Works) -> None:
    once = Works(works.settings.database_url, works.settings.home, max_attempts=1)
    job_id = once.submit("end=crash steps=1")
    # The first attempt completes the stage for the first time, and that is progress; the second gets nowhere new.
    assert [once.carry_out(job_id).status for _ in range(2)] == [Status.QUEUED, Status.FAILED]
    reason = once.job(job_id).status_reason
    assert reason is not None and reason.code == "crashed"
    assert "the machine room is on fire" in reason.message
    once.close()


def test_full_disk_in_the_run_pauses_the_job_with_its_checkpoint(works: Works) -> None:
    job = works.carry_out(works.submit("end=storage steps=6"))
    assert job.status is Status.PAUSED and job.status_reason is not None
    assert job.status_reason.code == "storage_full"
    checkpoints = works.settings.work / job.id / "1" / "stages" / "distill" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-000000005"]


def test_run_that_stops_unasked_is_lost(works: Works) -> None:
    job = works.carry_out(works.submit("end=stopped"))
    assert job.status is Status.QUEUED and works.outcomes(job.id) == ["lost"]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("forget=1", "no result.json"),
        ("tamper=1", "other bytes than the manifest says"),
    ],
)
def test_result_that_is_not_what_it_should_be_is_never_published(works: Works, behaviour: str, message: str) -> None:
    job = works.carry_out(works.submit(behaviour))
    assert job.status is Status.FAILED and job.status_reason is not None
    assert job.status_reason.code == "invalid_result" and message in job.status_reason.message
    assert works.variants.list(works.project_id).data == ()
    assert works.events(job.id, EventType.VARIANT_PUBLISHED) == []


def test_babble_of_a_run_does_no_harm(works: Works) -> None:
    job = works.carry_out(works.submit("babble=1"))
    assert job.status is Status.SUCCEEDED
    assert [e.message for e in works.events(job.id, EventType.SUCCEEDED)] == ["succeeded with 1 variant"]


def test_run_sees_no_credentials_and_no_network(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOUNDRY_DATABASE_URL", "FOUNDRY_BROKER_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = works.carry_out(works.submit("environment=1"))
    said = next(event.data for event in works.events(job.id) if event.message == "environment")
    assert "hidden" not in said["environment"].values()
    assert said["environment"]["HF_HUB_OFFLINE"] == "1" and said["environment"]["OMP_NUM_THREADS"] == "1"
    assert said["argv"] == [str(works.settings.work / job.id / "1")]


def test_run_may_use_the_network_when_the_teacher_is_on_the_hub(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "token")
    spec = factories.spec(name="environment=1", teacher="org/name", data=works.dataset.id)
    inputs = factories.inputs(teacher="org/name", dataset_id=works.dataset.id)
    job = works.carry_out(works.jobs.submit(works.project_id, spec, inputs).id)
    said = next(event.data for event in works.events(job.id) if event.message == "environment")
    assert "HF_HUB_OFFLINE" not in said["environment"] and said["environment"]["HF_TOKEN"] == "token"


def stolen(works: Works, job_id: str) -> bool:
    """Let another worker have the job, as when the first was frozen, unless a heartbeat comes in between."""
    with works.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=db_now() - 1))
    works.jobs.reconcile()
    return works.jobs.claim("worker-2", job_id) is not None


def test_fenced_supervisor_kills_its_run_and_writes_nothing(works: Works) -> None:
    job_id = works.submit(LONG)
    thread = works.begin(job_id)
    pid = works.run_pid(job_id)
    wait_until(lambda: stolen(works, job_id))
    wait_until(lambda: not is_alive(pid))
    thread.join(20)
    assert works.events(job_id)[-1].type is EventType.STARTED  # of the second attempt
    assert works.job(job_id).status is Status.RUNNING and works.job(job_id).attempt == 2
    assert works.outcomes(job_id) == ["lost", None]


def test_old_run_loses_its_folder_to_the_next_attempt(works: Works) -> None:
    """A frozen worker wakes up: what its run writes from then on lands outside of the new attempt's folder."""
    job_id = works.submit(LONG)
    works.begin(job_id)
    works.await_checkpoint(job_id)
    with works.database.write() as session:  # the job is freed without the old worker's knowing
        session.execute(
            update(JobRow).where(JobRow.id == job_id).values(status="queued", worker=None, lease_until=None)
        )
    claim = works.jobs.claim("worker-2", job_id)
    assert claim is not None
    workspace = folders.prepare(works.settings.work, claim, works.datasets)
    assert workspace.root.name == "2" and list(workspace.checkpoints("distill"))
    assert not (works.settings.work / job_id / "1" / "spec.json").exists()


def test_supervisor_fences_itself_when_the_database_is_silent(works: Works) -> None:
    """The database hangs: nobody tells us that the lease ends, so our own clock must."""
    short = Works(works.settings.database_url, works.settings.home, lease_s=1.2, heartbeat_s=0.2)
    job_id = short.submit(LONG)
    thread = short.begin(job_id)
    pid = short.run_pid(job_id)
    blocker = sqlite3.connect(works.settings.database_url.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # every heartbeat waits for this lock
    locked_at = time.monotonic()
    wait_until(lambda: not is_alive(pid))
    assert time.monotonic() - locked_at < short.settings.lease_s + 0.5
    blocker.execute("ROLLBACK")
    blocker.close()
    thread.join(20)
    wait_until(lambda: short.jobs.reconcile() == [job_id])
    assert short.outcomes(job_id) == ["lost"]
    short.close()


def test_work_folder_that_cannot_be_made_costs_the_job_an_attempt_not_the_worker(works: Works) -> None:
    works.settings.work.parent.mkdir(parents=True, exist_ok=True)
    works.settings.work.write_text("a file where the folder should be")
    job = works.carry_out(works.submit())
    assert job.status is Status.QUEUED and works.outcomes(job.id) == ["lost"]


def test_run_command_that_does_not_exist_costs_the_job_an_attempt_not_the_worker(works: Works, tmp_path: Path) -> None:
    job_id = works.submit()
    supervisor = Supervisor(
        works.settings, works.jobs, works.datasets, works.artifacts, stopping=works.stopping,
        command=[str(tmp_path / "nothing")],
    )  # fmt: skip
    supervisor.run(works.claim(job_id))
    assert works.outcomes(job_id) == ["lost"]
    assert "nothing" in (works.jobs.attempts(works.project_id, job_id)[0].message or "")


def test_dataset_that_is_gone_fails_the_job_with_its_name(works: Works) -> None:
    spec, inputs = factories.spec(), factories.inputs(dataset_id="ds_gone")
    job = works.carry_out(works.jobs.submit(works.project_id, spec, inputs).id)
    assert job.status is Status.FAILED and job.status_reason is not None
    assert job.status_reason.code == "not_found" and "ds_gone" in job.status_reason.message


def test_run_ends_by_itself_when_its_supervisor_is_gone(works: Works) -> None:
    """No process tells it: the end of its standard input does."""
    code = (
        "import sys; from tests.integration.workers.works import *;"
        f"w = Works({works.settings.database_url!r}, Path({str(works.settings.home)!r}));"
        f"w.begin(sys.argv[1])"
    )
    job_id = works.submit(LONG)
    worker = subprocess.Popen([sys.executable, "-c", code, job_id], cwd=Path(__file__).parents[3])
    pid = works.run_pid(job_id)
    os.kill(worker.pid, 9)
    worker.wait()
    wait_until(lambda: not is_alive(pid))
