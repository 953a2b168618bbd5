"""What is done to an installation. Each fault is given a random number and leaves every part running again."""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType

import psutil
import redis

from tests.chaos.installation import LEASE_S, Installation, freeze, thaw

Fault = Callable[[Installation, random.Random], None]
PAUSED = "SELECT id FROM jobs WHERE status = 'paused' AND reason_code = 'storage_full'"
_WORKERS = ("threads", "processes")


def kill_run(there: Installation, chance: random.Random) -> None:
    chance.choice(there.runs()).kill()


def freeze_run(there: Installation, chance: random.Random) -> None:
    """For good: the watchdog must notice it."""
    freeze([chance.choice(there.runs())])


def kill_worker(there: Installation, chance: random.Random) -> None:
    name = chance.choice(_WORKERS)
    there.kill(name)
    there.start(name)


def freeze_worker(there: Installation, chance: random.Random) -> None:
    """For less than a lease, or for more: then another attempt has the job when it wakes up."""
    name = chance.choice(_WORKERS)
    _frozen([there.process(name), *there.below(name)], chance.uniform(0.5, 2 * LEASE_S))


def kill_supervisor(there: Installation, _: random.Random) -> None:
    """The process of the pool that watches a run; its parent starts another."""
    for process in there.below("processes"):
        process.kill()


def freeze_supervisor(there: Installation, chance: random.Random) -> None:
    _frozen(there.below("processes"), chance.uniform(0.5, 2 * LEASE_S))


def kill_api(there: Installation, _: random.Random) -> None:
    there.kill("api")
    there.start("api")


def freeze_api(there: Installation, chance: random.Random) -> None:
    _frozen([there.process("api"), *there.below("api")], chance.uniform(0.5, 5))


def kill_redis(there: Installation, chance: random.Random) -> None:
    there.redis.stop()
    time.sleep(chance.uniform(0, 5))
    there.redis.start()


def freeze_redis(there: Installation, chance: random.Random) -> None:
    assert there.redis.pid is not None
    _frozen([psutil.Process(there.redis.pid)], chance.uniform(0.5, 8))


def flush_redis(there: Installation, _: random.Random) -> None:
    with redis.Redis.from_url(there.redis.url) as client:
        client.flushall()


def kill_postgres(there: Installation, chance: random.Random) -> None:
    there.postgres.kill()
    time.sleep(chance.uniform(0, LEASE_S))
    there.postgres.start()


def freeze_postgres(there: Installation, chance: random.Random) -> None:
    _frozen(there.postgres.processes(), chance.uniform(0.5, 1.5 * LEASE_S))


def restart_postgres(there: Installation, _: random.Random) -> None:
    there.postgres.restart()


def cut_database(there: Installation, chance: random.Random) -> None:
    there.to_database.cut()
    time.sleep(chance.uniform(0, 1.5 * LEASE_S))
    there.to_database.mend()


def stall_database(there: Installation, chance: random.Random) -> None:
    there.to_database.stall()
    time.sleep(chance.uniform(0, 1.5 * LEASE_S))
    there.to_database.mend()


def cut_broker(there: Installation, chance: random.Random) -> None:
    there.to_broker.cut()
    time.sleep(chance.uniform(0, 10))
    there.to_broker.mend()


def fill_disk(there: Installation, chance: random.Random) -> None:
    """Until a job has paused, or for a while; then the operator makes room; whoever waits resumes what has paused."""
    ballast = there.disk / "ballast"
    # Without a buffer, which would be written again when the file is closed.
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    deadline = time.monotonic() + chance.uniform(10, 30)
    while not there.query(PAUSED) and time.monotonic() < deadline:
        time.sleep(0.2)
    ballast.unlink(missing_ok=True)


def _frozen(processes: list[psutil.Process], seconds: float) -> None:
    freeze(processes)
    try:
        time.sleep(seconds)
    finally:
        thaw(processes)


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        function.__name__.replace("_", "-"): function
        for function in (
            kill_run, freeze_run, kill_worker, freeze_worker, kill_supervisor, freeze_supervisor, kill_api, freeze_api,
            kill_redis, freeze_redis, flush_redis, kill_postgres, freeze_postgres, restart_postgres, cut_database,
            stall_database, cut_broker, fill_disk,
        )
    }
)  # fmt: skip
