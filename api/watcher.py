"""One look at the database for all who wait for events: however many streams are open, they cost one query a look.

What the look finds is read once, too, for all readers of a job that have come as far: two hundred of them do not ask
for the same event two hundred times.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog
from sqlalchemy import select

from foundry.errors import OperatorError
from foundry.store.database import Database
from foundry.store.tables import JobRow

LOOK_S = 0.1
"""How often the database is asked while somebody waits."""
_AWAY_S = 1.0
_MOST_AT_ONCE = 500
_KEPT = 64
R = TypeVar("R")
_log = structlog.get_logger()


class Ticket:
    """One who waits for the events of one job that come after the last one that was seen."""

    def __init__(self, job_id: str, seen: int) -> None:
        self.job_id = job_id
        self.seen = seen
        self.latest = seen
        """The number of the last event that the watcher knows of."""
        self._changed = threading.Event()

    def wait(self, timeout_s: float) -> bool:
        """Whether there is something new; also when the database was away and the reader should find out itself."""
        return self._changed.wait(timeout_s)

    def saw(self, seq: int) -> None:
        """Events up to this number are known: wait for later ones."""
        self.seen = seq
        self._changed.clear()

    def tell(self, latest: int) -> None:
        """There are events up to this number."""
        self.latest = latest
        self._changed.set()


class Watcher:
    """Looks while, and only while, somebody waits; safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._thread: threading.Thread | None = None
        self._reading = threading.Lock()
        self._read: OrderedDict[Hashable, Any] = OrderedDict()

    @contextmanager
    def watching(self, job_id: str, seen: int) -> Iterator[Ticket]:
        """A ticket for as long as the block lasts."""
        ticket = Ticket(job_id, seen)
        with self._lock:
            self._tickets.add(ticket)
            if self._thread is None:
                self._thread = threading.Thread(target=self._go, name="watcher", daemon=True)
                self._thread.start()
        try:
            yield ticket
        finally:
            with self._lock:
                self._tickets.discard(ticket)

    def once(self, key: Hashable, read: Callable[[], R]) -> R:
        """What `read` gave the first who asked under this key; nothing is kept when it raises."""
        with self._reading:
            if key not in self._read:
                self._read[key] = read()
                if len(self._read) > _KEPT:
                    self._read.popitem(last=False)
            kept: R = self._read[key]
            return kept

    def _go(self) -> None:
        while True:
            with self._lock:
                waiting = list(self._tickets)
                if not waiting:
                    self._thread = None
                    return
            try:
                self._look(waiting)
            except OperatorError as error:
                _log.error("the database does not answer those who wait", error=error.message)
                self._wake(waiting)
                time.sleep(_AWAY_S)
            except Exception:  # a mistake of ours must not leave everybody waiting
                _log.exception("a look failed")
                self._wake(waiting)
                time.sleep(_AWAY_S)
            time.sleep(LOOK_S)

    def _look(self, waiting: list[Ticket]) -> None:
        ids = sorted({ticket.job_id for ticket in waiting})
        last: dict[str, int] = {}
        with self._database.read() as session:
            for start in range(0, len(ids), _MOST_AT_ONCE):
                query = select(JobRow.id, JobRow.last_seq).where(JobRow.id.in_(ids[start : start + _MOST_AT_ONCE]))
                last |= {job_id: seq for job_id, seq in session.execute(query)}
        for ticket in waiting:
            latest = last.get(ticket.job_id, ticket.seen + 1)  # a job that is gone is news, too
            if latest > ticket.seen:
                ticket.tell(latest)

    def _wake(self, waiting: list[Ticket]) -> None:
        for ticket in waiting:
            ticket.tell(ticket.seen)
