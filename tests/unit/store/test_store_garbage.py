"""Whatever is made, deleted and swept in whatever order: bytes that a row holds are never removed, others go."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import update

from foundry.intake.documents import summarise
from foundry.store import tables
from foundry.store.artifacts import LocalArtifacts
from foundry.store.database import Database
from foundry.store.datasets import Datasets
from foundry.store.orphans import Orphans
from foundry.store.project_tables import GarbageRow
from foundry.store.removal import HOLDERS, Removal
from foundry.store.tables import Row
from tests import factories

TEXTS = [f'{{"text": "document {n}"}}\n' for n in range(4)]
NOT_BYTES = {"body_sha256", "garbage.sha256", "upload_parts.sha256", "variants.manifest_sha256"}
"""A request's digest; what may go; parts, which are no artifacts; a manifest, which is also a file of its variant."""


class Garbage(RuleBasedStateMachine):
    """Datasets share bytes by content; a process dies after it put bytes; workers sweep; hours pass."""

    template: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.database = Database(f"sqlite:///{shutil.copy(self.template, self.folder / 'foundry.db')}")
        self.artifacts = LocalArtifacts(self.folder / "artifacts")
        self.datasets = Datasets(self.database, self.artifacts)
        self.removal = Removal(self.database, self.artifacts, factories.settings(self.folder))
        self.orphans = Orphans(self.database, self.artifacts)
        self.project_id = factories.project(self.database)
        self.held: dict[str, str] = {}

    @rule(text=st.sampled_from(TEXTS))
    def make(self, text: str) -> None:
        path = self._file(text)
        made = self.datasets.create(self.project_id, "mine", path, summarise(path))
        self.held[made.id] = made.sha256

    @rule(text=st.sampled_from(TEXTS))
    def die_after_putting(self, text: str) -> None:
        self.artifacts.put(self._file(text))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self.held:
            dataset_id = data.draw(st.sampled_from(sorted(self.held)))
            self.removal.dataset(self.project_id, dataset_id)
            del self.held[dataset_id]

    @rule()
    def look_for_orphans(self) -> None:
        self.orphans.mark(older_than_s=-1)

    @rule()
    def sweep(self) -> None:
        self.removal.sweep()

    @rule()
    def two_hours_pass(self) -> None:
        """For the marks and for the bytes."""
        with self.database.write() as session:
            session.execute(update(GarbageRow).values(since=GarbageRow.since - 7200))
        for blob in (self.folder / "artifacts" / "blobs").glob("??/*"):
            os.utime(blob, (blob.stat().st_atime - 7200, blob.stat().st_mtime - 7200))

    @invariant()
    def everything_held_is_there(self) -> None:
        if hasattr(self, "held"):
            assert all(self.artifacts.exists(sha256) for sha256 in self.held.values())

    def teardown(self) -> None:
        if not hasattr(self, "held"):
            return
        self.look_for_orphans()
        self.two_hours_pass()
        self.sweep()
        left = set(self.artifacts.digests(older_than_s=-1))
        self.database.close()
        shutil.rmtree(self.folder)
        assert left == set(self.held.values())  # nothing that no row holds is left either

    def _file(self, text: str) -> Path:
        path = self.folder / "data.jsonl"
        path.write_text(text)
        return path


@pytest.fixture
def machine(migrated_sqlite: Path) -> type[Garbage]:
    """The machine with a database to copy."""
    Garbage.template = migrated_sqlite
    return Garbage


def test_bytes_that_a_row_holds_are_never_removed_and_others_are(machine: type[Garbage]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    limits = settings(max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=limits)


def test_every_column_that_names_bytes_of_the_store_holds_them() -> None:
    """Whoever adds a table with a digest must say whether it holds bytes."""
    assert tables.Row is Row
    named = {str(c) for t in Row.metadata.sorted_tables for c in t.columns if c.name.endswith("sha256")}
    holding = {f"{column.class_.__tablename__}.{column.key}" for column in HOLDERS}
    assert {name for name in named - holding if name not in NOT_BYTES and name.split(".")[1] not in NOT_BYTES} == set()
