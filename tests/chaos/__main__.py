"""The kill matrix: `make test-chaos`. Genuine jobs go on while parts of the installation are killed at random moments.

    make test-chaos                                          # 20 points of every fault, at most 3 hours
    make test-chaos ARGS='--points 3 --only kill-run fill-disk --minutes 5'

Ends with status 1 and the broken promises when one of invariants.py does not hold. Everything is on loopback.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from tests.chaos.faults import FAULTS, PAUSED
from tests.chaos.installation import ROOT, Installation, running_installation, wait
from tests.chaos.invariants import damaged_blobs, violations

_IN_FLIGHT = 3
_POINT_S = 12.0
"""A fault comes at a random moment of so many seconds after a run has begun: about as long as a run lasts."""
_COUNTING = f"{sys.executable} {ROOT / 'tests/integration/workers/scripted_run.py'}"
_ON_ITS_WAY_S = 1.0
"""What a run said before the fault may reach the database so long after it."""
_PATIENCE_S = 300.0
_ENGINE = ("stage.started", "stage.completed", "progress", "checkpoint.created", "metrics", "variant.published", "log")


class Matrix:
    """Keeps jobs in flight, does one fault after the other, and takes the time until all jobs move again."""

    def __init__(self, there: Installation, seed: int) -> None:
        self._there = there
        self._chance = random.Random(seed)
        self._submitted = 0
        self.acknowledged: set[str] = set()
        self.recovery_s: dict[str, list[float]] = defaultdict(list)

    def strike(self, name: str) -> None:
        """One fault at one random point."""
        self._fill_up()
        wait(lambda: self._is_at_work(), "no run began")
        time.sleep(self._chance.uniform(0, _POINT_S))
        self._fill_up()
        wait(lambda: self._is_at_work(), "no run began")
        affected = self._held()
        FAULTS[name](self._there, self._chance)
        ended_at = time.monotonic()
        time.sleep(_ON_ITS_WAY_S)
        before = self._last_seqs()
        wait(lambda: self._all_moved(affected, before), f"{name}: not all jobs went on", _PATIENCE_S)
        self.recovery_s[name].append(time.monotonic() - ended_at)

    def finish(self) -> list[str]:
        """Let every job end, and judge."""
        waiting = "SELECT id FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled')"
        wait(lambda: not self._there.query(waiting), "not every job has ended", 300)
        with self._there.direct.connect() as connection:
            found = violations(connection, self.acknowledged)
            return found + damaged_blobs(connection, self._there.disk / "artifacts")

    def _fill_up(self) -> None:
        going = self._there.query("SELECT count(*) FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled')")[
            0
        ][0]
        for _ in range(_IN_FLIGHT - going):
            self._submitted += 1
            self.acknowledged.add(self._there.submit(self._submitted))

    def _resume(self) -> None:
        """What an operator does once there is room again."""
        for row in self._there.query(PAUSED):
            self._there.client.jobs.resume(row.id)

    def _is_at_work(self) -> bool:
        return bool(self._there.runs()) and bool(self._held())

    def _held(self) -> list[str]:
        return [row.id for row in self._there.query("SELECT id FROM jobs WHERE status = 'running'")]

    def _last_seqs(self) -> dict[str, int]:
        return {row.id: row.last_seq for row in self._there.query("SELECT id, last_seq FROM jobs")}

    def _all_moved(self, affected: list[str], before: dict[str, int]) -> bool:
        """Whether each has ended, or its run has said something since the fault was over, in the newest attempt."""
        if not self._there.answers():
            return False
        self._resume()
        for job_id in affected:
            status, said = self._there.query(
                "SELECT j.status, (SELECT e.type FROM events e WHERE e.job_id = j.id AND e.attempt = j.epoch "
                "AND e.seq > :seq AND e.type = ANY(:types) ORDER BY e.seq DESC LIMIT 1) FROM jobs j WHERE j.id = :job",
                job=job_id, seq=before[job_id], types=list(_ENGINE),
            )[0]  # fmt: skip
            if status in ("succeeded", "failed", "cancelled"):
                continue
            if status != "running" or said is None:
                return False
        return True


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # not without taking everything down first
    names = [name for name in (options.only or FAULTS) for _ in range(options.points)]
    random.Random(options.seed).shuffle(names)
    own_disk = "fill-disk" in names
    try:
        with running_installation(own_disk=own_disk, run_command=_COUNTING if options.counting else "") as there:
            return _run(Matrix(there, options.seed), there, names, options)
    except subprocess.CalledProcessError as error:
        print(f"no file system of its own can be mounted here ({error.stderr.decode().strip()}): leave fill-disk out")
        return 2


def _run(matrix: Matrix, there: Installation, names: list[str], options: argparse.Namespace) -> int:
    end = time.monotonic() + 60 * options.minutes
    done, problems = 0, []
    try:
        for name in names:
            if time.monotonic() > end:
                break
            matrix.strike(name)
            done += 1
            print(
                f"{done}/{len(names)} {name}: all jobs moved on after {matrix.recovery_s[name][-1]:.1f} s", flush=True
            )
        problems = matrix.finish()
    except Exception as error:
        problems = [repr(error), *_jobs(there), *_logs(there)]
    _report(matrix, done, problems, options)
    return 1 if problems else 0


def _report(matrix: Matrix, done: int, problems: list[str], options: argparse.Namespace) -> None:
    print(f"\n{'fault':20}{'tried':>7}{'median s':>10}{'worst s':>10}")
    for name, seconds in sorted(matrix.recovery_s.items()):
        print(f"{name:20}{len(seconds):7}{median(seconds):10.1f}{max(seconds):10.1f}")
    print(f"{done} faults, {len(matrix.acknowledged)} jobs, {len(problems)} broken promises, seed {options.seed}")
    print("\n".join(problems))
    if options.report:
        found = {"seed": options.seed, "jobs": len(matrix.acknowledged), "problems": problems, **matrix.recovery_s}
        options.report.write_text(json.dumps(found, indent=1))


def _jobs(there: Installation) -> list[str]:
    """Where every unfinished job stands, and the last that was said of it."""
    rows = there.query(
        "SELECT j.id, j.status, j.epoch, e.seq, e.type, e.message FROM jobs j JOIN events e ON e.job_id = j.id AND "
        "e.seq = j.last_seq WHERE j.status NOT IN ('succeeded', 'failed', 'cancelled')"
    )
    return [f"--- {' '.join(map(str, row))}" for row in rows]


def _logs(there: Installation) -> list[str]:
    return [
        f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-40:])
        for path in sorted(there.folder.glob("*.log"))
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Kill parts of an installation at random moments and judge the result."
    )
    parser.add_argument("--points", type=int, default=20, help="how often each fault is done")
    parser.add_argument("--minutes", type=float, default=180, help="no further fault is begun after so many minutes")
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), help="these faults alone")
    parser.add_argument(
        "--counting",
        action="store_true",
        help="runs that only count, in processes of their own: quick, without a model",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="also write the figures there, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
