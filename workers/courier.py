"""The one thread that talks to the database while a run goes on: brings events, keeps the lease, fetches orders."""

import threading
import time
from contextvars import copy_context
from typing import Self

import structlog

from foundry.errors import LeaseLost, OperatorError
from foundry.store.jobs import Jobs
from foundry.store.records import Claim, Orders
from foundry.store.settings import Settings
from workers.relay import Relay

_log = structlog.get_logger()
_TICK_S = 0.1
_RETRY_S = 1.0
_MARGIN_RATIO, _LONGEST_MARGIN_S = 1 / 6, 5.0


class Courier:
    """Between a run and its job's row. Knows, by a clock that nobody sets, when the lease can no longer be trusted."""

    def __init__(self, jobs: Jobs, claim: Claim, relay: Relay, settings: Settings) -> None:
        self._jobs = jobs
        self._claim = claim
        self._relay = relay
        self._heartbeat_s = settings.heartbeat_s
        self._trusted_s = settings.lease_s - min(_LONGEST_MARGIN_S, settings.lease_s * _MARGIN_RATIO)
        self._renewed_at = time.monotonic()
        self._next_beat = float("-inf")
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._on_its_way = threading.Lock()  # held while a batch is neither in the relay nor in the database
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._go,), name=f"courier-{claim.job_id}", daemon=True
        )
        self.orders = Orders(cancel=False, pause=False)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(self._heartbeat_s)  # a statement that hangs must not hold the worker

    @property
    def is_fenced(self) -> bool:
        """Another attempt may have the job: the run must end and nothing more may be written.

        Either the database said so, or it has been silent for so long that the lease is about to end.
        """
        return self._lost.is_set() or time.monotonic() - self._renewed_at > self._trusted_s

    def deliver_all(self) -> None:
        """Wait until all that the run said is in the database; raise `LeaseLost` when that cannot be any more."""
        while not self.is_fenced:
            with self._on_its_way:
                if self._relay.is_empty:
                    return
            time.sleep(_TICK_S / 2)
        raise self.fenced()

    def fenced(self) -> LeaseLost:
        """Why the run had to end."""
        how = "another attempt has the job" if self._lost.is_set() else "the database was silent for nearly a lease"
        return LeaseLost(f"attempt {self._claim.epoch} of job {self._claim.job_id} gives up: {how}")

    def _go(self) -> None:
        while not self._closing.is_set():
            try:
                self._beat()
                self._deliver()
                self._closing.wait(_TICK_S)
            except LeaseLost:
                self._lost.set()
                return
            except OperatorError as error:
                _log.warning("the database does not take events or heartbeats; trying again", error=error.message)
                self._closing.wait(_RETRY_S)
            except Exception:
                # A mistake of ours in one batch must not end the heartbeats of a run of many hours.
                _log.exception("a batch of events is lost")

    def _beat(self) -> None:
        sent_at = time.monotonic()
        if sent_at >= self._next_beat:
            self._hear(self._jobs.heartbeat(self._claim))
            self._renewed_at, self._next_beat = sent_at, sent_at + self._heartbeat_s

    def _deliver(self) -> None:
        with self._on_its_way:
            if not (batch := self._relay.take()):
                return
            try:
                self._hear(self._jobs.append(self._claim, batch))
            except OperatorError:
                self._relay.give_back(batch)
                raise

    def _hear(self, orders: Orders) -> None:
        if orders != self.orders:
            _log.info("orders from the user", cancel=orders.cancel, pause=orders.pause)
        self.orders = orders
