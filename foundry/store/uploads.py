"""Files that arrive in parts. A part's row is written after its bytes are safe, so a restart loses at most one part."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Update, func, select, update
from sqlalchemy.orm import Session

from foundry.errors import ArtifactDamaged, InvalidData, NotFound, UploadConflict
from foundry.spec.library import Upload, UploadPart, UploadPurpose, UploadStatus
from foundry.spec.resources import Page
from foundry.store.artifacts import Blob, storage_errors
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.idempotency import take_key
from foundry.store.ids import new_id
from foundry.store.pages import moment, page_of
from foundry.store.project_tables import UploadPartRow, UploadRow
from foundry.store.records import Idempotency
from foundry.store.settings import Settings
from foundry.store.usage import require_room_for_bytes

SMALLEST_PART_BYTES = 2**23
MOST_PARTS = 10_000
_LIVES_S = 7 * 24 * 3600.0
_SHOWN_MISSING = 1000
_BLOCK_BYTES = 2**20


class Uploads:
    """Every method takes the project of the caller; another project's upload is `NotFound`."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._root = settings.artifacts / "uploads"

    def create(
        self, project_id: str, name: str, purpose: UploadPurpose, size: int, sha256: str | None = None,
        idempotency: Idempotency | None = None,
    ) -> Upload:  # fmt: skip
        """Announce a file of `size` bytes; raise `InvalidData` when it is too large and `QuotaExceeded`."""
        if size > self._settings.max_upload_bytes:
            most = self._settings.max_upload_bytes
            raise InvalidData(f"{size:,} bytes are more than the {most:,} that this service takes", pointer="/bytes")
        upload_id = new_id("up")
        with self._database.write() as session:
            made = take_key(session, project_id, idempotency, upload_id)
            if made is None:
                require_room_for_bytes(session, project_id, size)
                now = _now(session)
                row = UploadRow(
                    id=upload_id, project_id=project_id, name=name, purpose=purpose, status="open", bytes=size,
                    sha256=sha256, part_bytes=max(SMALLEST_PART_BYTES, -(-size // MOST_PARTS)), created_at=now,
                    expires_at=now + _LIVES_S,
                )  # fmt: skip
                session.add(row)
        return self.get(project_id, made or upload_id)

    def get(self, project_id: str, upload_id: str) -> Upload:
        """One upload with what is missing; raise `NotFound`."""
        with self._database.read() as session:
            return _record(session, _find(session, project_id, upload_id))

    def list(
        self, project_id: str, limit: int = 20, after: str | None = None, status: str | None = None,
        sha256: str | None = None,
    ) -> Page[Upload]:  # fmt: skip
        """Newest first; `sha256` finds the one that an interrupted client began."""
        query = select(UploadRow).where(UploadRow.project_id == project_id)
        query = query if status is None else query.where(UploadRow.status == status)
        query = query if sha256 is None else query.where(UploadRow.sha256 == sha256)
        with self._database.read() as session:
            return page_of(session, query, UploadRow.id, limit, after, _records)

    def put_part(self, project_id: str, upload_id: str, number: int, staged: Path, found: Blob) -> UploadPart:
        """Keep one part, moving the staged file; sent again it replaces the one before.

        Raises `InvalidData` when no such part can be or its length is not what it must be, and `UploadConflict`.
        """
        with self._database.read() as session:
            row = _open(session, project_id, upload_id)
        expected = _length_of(row, number)
        if found.bytes != expected:
            raise InvalidData(f"part {number} has {found.bytes:,} bytes, not {expected:,}", pointer="/parts/number")
        place = self._place(upload_id, number)
        with storage_errors(self._root):
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(place)
        values = {"bytes": found.bytes, "sha256": found.sha256}
        with self._database.write() as session:
            _open(session, project_id, upload_id)
            if not insert_if_absent(session, UploadPartRow, upload_id=upload_id, number=number, **values):
                session.execute(
                    update(UploadPartRow)
                    .where(UploadPartRow.upload_id == upload_id, UploadPartRow.number == number)
                    .values(**values)
                )
        return UploadPart(number=number, **values)

    def assemble(self, project_id: str, upload_id: str, target: Path) -> Blob:
        """Write the whole file to `target` and return its digest.

        Raises `UploadConflict` while parts are missing or when the digest is not the announced one.
        """
        upload = self.get(project_id, upload_id)
        _require_open(upload.status, upload_id)
        if upload.missing_parts:
            shown = ", ".join(map(str, upload.missing_parts[:10]))
            raise UploadConflict(f"{upload_id}: parts have not arrived: {shown}; send them, then complete it")
        digest = hashlib.sha256()
        with storage_errors(target.parent), target.open("wb") as whole:
            for number in range(1, upload.parts + 1):
                self._append(upload_id, number, whole, digest)
        if upload.sha256 is not None and digest.hexdigest() != upload.sha256:
            raise UploadConflict(
                f"{upload_id}: the SHA-256 of all parts is {digest.hexdigest()}, not {upload.sha256} as announced"
            )
        return Blob(digest.hexdigest(), upload.bytes)

    def _append(self, upload_id: str, number: int, whole: object, digest: object) -> None:
        place = self._place(upload_id, number)
        try:
            with place.open("rb") as part:
                while block := part.read(_BLOCK_BYTES):
                    digest.update(block)  # type: ignore[attr-defined]
                    whole.write(block)  # type: ignore[attr-defined]
        except FileNotFoundError as error:
            raise ArtifactDamaged(f"part {number} of {upload_id} is gone from the disk: send it again") from error

    def complete(self, project_id: str, upload_id: str, sha256: str, dataset_id: str | None = None) -> Upload:
        """The file is kept elsewhere now: end the upload and let go of its parts."""
        with self._database.write() as session:
            _find(session, project_id, upload_id)
            session.execute(_end(upload_id, "completed").values(sha256=sha256, dataset_id=dataset_id))
        self._drop(upload_id)
        return self.get(project_id, upload_id)

    def cancel(self, project_id: str, upload_id: str) -> Upload:
        """End an open upload and remove its parts; raise `UploadConflict` when it is completed."""
        with self._database.write() as session:
            row = _find(session, project_id, upload_id)
            if row.status == "completed":
                raise UploadConflict(f"{upload_id} is completed; delete what it became instead")
            session.execute(_end(upload_id, "cancelled"))
        self._drop(upload_id)
        return self.get(project_id, upload_id)

    def sweep(self) -> None:
        """End the uploads whose time is over and remove their parts."""
        late = (UploadRow.status == "open", UploadRow.expires_at < db_now())
        with self._database.read() as session:
            ids = session.scalars(select(UploadRow.id).where(*late).limit(1000)).all()
        for upload_id in ids:
            with self._database.write() as session:
                session.execute(_end(upload_id, "expired").where(*late))
            self._drop(upload_id)

    def _drop(self, upload_id: str) -> None:
        shutil.rmtree(self._root / upload_id, ignore_errors=True)

    def _place(self, upload_id: str, number: int) -> Path:
        return self._root / upload_id / f"{number:05}"

    def staging(self, upload_id: str) -> Path:
        """A new name beside the parts for one that is just arriving."""
        folder = self._root / upload_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f".{os.getpid()}.{secrets.token_hex(8)}.partial"


def parts_of(size: int, part_bytes: int) -> int:
    """How many parts a file has; an empty file has one, which is empty."""
    return max(1, -(-size // part_bytes))


def _length_of(row: UploadRow, number: int) -> int:
    parts = parts_of(row.bytes, row.part_bytes)
    if not 1 <= number <= parts:
        raise InvalidData(f"{row.id} has the parts 1 to {parts:,}; there is no part {number}", pointer="/parts/number")
    return row.part_bytes if number < parts else row.bytes - row.part_bytes * (parts - 1)


def _end(upload_id: str, status: UploadStatus) -> Update:
    return update(UploadRow).where(UploadRow.id == upload_id).values(status=status)


def _find(session: Session, project_id: str, upload_id: str) -> UploadRow:
    row = session.get(UploadRow, upload_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no upload {upload_id!r} in this project")
    return row


def _open(session: Session, project_id: str, upload_id: str) -> UploadRow:
    row = _find(session, project_id, upload_id)
    _require_open(row.status, upload_id)
    return row


def _require_open(status: str, upload_id: str) -> None:
    if status != "open":
        raise UploadConflict(f"{upload_id} is {status}; begin a new upload")


def _now(session: Session) -> float:
    return session.scalars(select(db_now())).one()


def _records(session: Session, rows: Sequence[UploadRow]) -> Sequence[Upload]:
    return [_record(session, row) for row in rows]


def _record(session: Session, row: UploadRow) -> Upload:
    parts = parts_of(row.bytes, row.part_bytes)
    of_this = UploadPartRow.upload_id == row.id
    there, received = 0, 0
    missing: tuple[int, ...] = ()
    if row.status == "completed":
        there, received = parts, row.bytes
    else:
        there, received = session.execute(
            select(func.count(), func.coalesce(func.sum(UploadPartRow.bytes), 0)).where(of_this)
        ).one()
    if row.status == "open" and there < parts:
        numbers = set(session.scalars(select(UploadPartRow.number).where(of_this)))
        missing = tuple(n for n in range(1, parts + 1) if n not in numbers)[:_SHOWN_MISSING]
    return Upload(
        id=row.id, name=row.name, purpose=row.purpose, status=row.status, bytes=row.bytes, sha256=row.sha256,
        part_bytes=row.part_bytes, parts=parts, received_bytes=int(received), missing_parts=missing,
        dataset_id=row.dataset_id, created_at=moment(row.created_at), expires_at=moment(row.expires_at),
    )  # fmt: skip
