"""A worker without a broker: `python -m workers.embedded` polls the database for queued jobs.

SIGTERM or Ctrl-C lets the run write a checkpoint and puts its job back into the queue; a second one ends at once.
"""

import signal
import sys
import threading
from types import FrameType

import structlog

from foundry.errors import FoundryError, OperatorError
from foundry.store.settings import Settings
from workers import logs
from workers.meters import METERS
from workers.postman import Postman
from workers.reconciler import Reconciler
from workers.station import Station, open_station

_log = structlog.get_logger()
_RETRY_S = 2.0


def work(station: Station, stopping: threading.Event) -> None:
    """Claim and carry out jobs, one after the other, until `stopping` is set."""
    while not stopping.is_set():
        try:
            claim = station.jobs.claim(station.name, memory_bytes=station.settings.memory_bytes)
        except OperatorError as error:
            _log.warning("the database does not answer; trying again", error=error.message)
            stopping.wait(_RETRY_S)
            continue
        if claim is None:
            stopping.wait(station.settings.poll_s)
        else:
            station.supervisor.run(claim)


def main() -> int:
    """The process: settings from the environment, signals, the loop."""
    logs.configure()
    stopping = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        settings = Settings.from_env()
        station = open_station(settings, stopping)
    except FoundryError as error:
        print(f"the worker cannot start: {error.message}", file=sys.stderr)
        return 1
    reconciler = Reconciler(settings, station.jobs, sweeps=station.sweeps)
    postman = Postman(settings, station.outbox)
    reconciler.start()
    postman.start()
    METERS.show(settings)
    _log.info("worker started", worker=station.name, work=str(settings.work))
    work(station, stopping)
    reconciler.stop()
    postman.stop()
    station.database.close()
    _log.info("worker stopped", worker=station.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
