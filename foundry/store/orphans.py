"""Bytes in the store that no row holds: a process died after it had put them and before it wrote the row.

Found by listing the store, a few times a day. They are only marked here: removal.py removes what is marked, an hour
later and if nothing holds it by then.
"""

import time
from collections.abc import Sequence
from itertools import islice

from sqlalchemy import select

from foundry.store.artifacts import ArtifactStore
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.project_tables import GarbageRow
from foundry.store.removal import HOLDERS

_EVERY_S = 6 * 3600.0
_OLD_S = 24 * 3600.0
_BATCH = 500


class Orphans:
    """Any number of workers may look: marking twice is marking once."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts
        self._next_at = float("-inf")

    def sweep(self) -> None:
        """Look when the last look was some hours ago."""
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _EVERY_S
            self.mark(older_than_s=_OLD_S)

    def mark(self, *, older_than_s: float) -> int:
        """Mark what was put longer ago than that and is held by nothing; return how many that were."""
        count = 0
        old = self._artifacts.digests(older_than_s=older_than_s)
        while digests := list(islice(old, _BATCH)):
            free = self._free_among(digests)
            count += len(free)
            with self._database.write() as session:
                for sha256 in free:
                    insert_if_absent(session, GarbageRow, sha256=sha256, since=db_now())
        return count

    def _free_among(self, digests: Sequence[str]) -> list[str]:
        with self._database.read() as session:
            held = {
                sha256 for column in HOLDERS for sha256 in session.scalars(select(column).where(column.in_(digests)))
            }
        return [sha256 for sha256 in digests if sha256 not in held]
