"""A worker's surroundings: a project, a dataset, short times, and runs that only count."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from foundry.spec.lifecycle import EventType, JobEvent, Status
from foundry.spec.resources import Job
from foundry.store.artifacts import LocalArtifacts
from foundry.store.database import Database
from foundry.store.datasets import Datasets
from foundry.store.jobs import Jobs
from foundry.store.records import Claim
from foundry.store.variants import Variants
from tests import factories
from workers.supervisor import Supervisor

SCRIPT = (sys.executable, str(Path(__file__).with_name("scripted_run.py")))
ROOT = Path(__file__).parents[3]
PATIENCE_S = 30.0


class Works:
    """One installation: its store, and ways to submit jobs, to carry them out and to wait for what happens."""

    def __init__(self, url: str, home: Path, **changes: object) -> None:
        times = {"lease_s": 6.0, "heartbeat_s": 0.2, "stop_grace_s": 1.0, "poll_s": 0.05}
        self.settings = factories.settings(home, database_url=url, run_command=SCRIPT, **(times | changes))
        self.database = Database(url)
        self.artifacts = LocalArtifacts(self.settings.artifacts)
        self.jobs = Jobs(self.database, self.settings)
        self.variants = Variants(self.database, self.artifacts)
        self.datasets = Datasets(self.database, self.artifacts)
        self.stopping = threading.Event()
        self.project_id = factories.project(self.database)
        home.mkdir(parents=True, exist_ok=True)
        self.dataset = self.datasets.create(self.project_id, "mine", *factories.data_file(home))
        self._threads: list[threading.Thread] = []

    def submit(self, behaviour: str = "", **changes: object) -> str:
        spec = factories.spec(name=behaviour, data=self.dataset.id, **changes)
        inputs = factories.inputs(dataset_id=self.dataset.id, data_sha256=self.dataset.sha256)
        return self.jobs.submit(self.project_id, spec, inputs).id

    def claim(self, job_id: str) -> Claim:
        claim = self.jobs.claim("worker-1", job_id)
        assert claim is not None
        return claim

    def supervisor(self) -> Supervisor:
        return Supervisor(
            self.settings, self.jobs, self.datasets, self.artifacts, stopping=self.stopping,
            command=self.settings.run_command,
        )  # fmt: skip

    def carry_out(self, job_id: str) -> Job:
        """Claim and supervise to the end of the attempt."""
        self.supervisor().run(self.claim(job_id))
        return self.job(job_id)

    def begin(self, job_id: str) -> threading.Thread:
        """The same in the background."""
        thread = threading.Thread(target=self.supervisor().run, args=(self.claim(job_id),))
        thread.start()
        self._threads.append(thread)
        return thread

    def job(self, job_id: str) -> Job:
        return self.jobs.get(self.project_id, job_id)

    def events(self, job_id: str, type: EventType | None = None) -> list[JobEvent]:
        events = self.jobs.events(self.project_id, job_id, limit=10_000)
        return [event for event in events if type in (None, event.type)]

    def outcomes(self, job_id: str) -> list[str | None]:
        return [attempt.outcome for attempt in self.jobs.attempts(self.project_id, job_id)]

    def await_checkpoint(self, job_id: str, count: int = 1) -> None:
        wait_until(lambda: len(self.events(job_id, EventType.CHECKPOINT)) >= count)

    def await_status(self, job_id: str, *statuses: Status) -> Job:
        wait_until(lambda: self.job(job_id).status in statuses, what=lambda: str(self.job(job_id)))
        return self.job(job_id)

    def run_pid(self, job_id: str) -> int:
        """The process of the newest attempt."""
        wait_until(lambda: any("pid" in e.data for e in self.events(job_id) if e.attempt == self.job(job_id).attempt))
        return int([e.data["pid"] for e in self.events(job_id) if "pid" in e.data][-1])

    def environment(self, **more: str) -> Mapping[str, str]:
        """For a worker's own process."""
        names = ("home", "database_url", "lease_s", "heartbeat_s", "stop_grace_s", "poll_s")
        settings = {f"FOUNDRY_{name.upper()}": str(getattr(self.settings, name)) for name in names}
        return os.environ | settings | {"FOUNDRY_RUN_COMMAND": " ".join(SCRIPT)} | more

    def close(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self.database.close()


def wait_until(happened: Callable[[], bool], what: Callable[[], str] = lambda: "") -> None:
    """Poll, but not for ever."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s in vain. {what()}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    with suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextmanager
def running_worker(works: Works, log: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker's own process. What it writes stands in `log`; at the end it is stopped, gently first."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, env=works.environment(**environment), stdin=subprocess.DEVNULL,
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
