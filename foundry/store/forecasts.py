"""How fast this installation has worked so far, and how much room it has."""

import shutil
from pathlib import Path
from statistics import median

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from foundry.spec.forecast import Measured, training_operations
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import Status, WorkKind
from foundry.store.database import Database
from foundry.store.settings import Settings
from foundry.store.tables import AttemptRow, JobRow, VariantRow

_JOBS = 20
"""The latest jobs that succeeded; older ones may have run on other hardware."""


class Forecasts:
    """Reads the history of all projects: the hardware is the operator's, and only a median leaves here."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def measured(self) -> Measured | None:
        """None while no job has succeeded whose teacher's size is known."""
        done = (JobRow.status == Status.SUCCEEDED.value, JobRow.kind == WorkKind.JOB.value)
        latest = select(JobRow).where(*done).order_by(JobRow.id.desc()).limit(_JOBS)
        with self._database.read() as session:
            speeds = [speed for job in session.scalars(latest) if (speed := _speed(session, job))]
        return Measured(jobs=len(speeds), operations_per_s=median(speeds)) if speeds else None

    def disk_free_bytes(self) -> int | None:
        """The least of what is free for work and for artifacts; None when the folders are not to be seen from here."""
        try:
            places = (self._settings.work, self._settings.artifacts)
            return min(shutil.disk_usage(_existing(place)).free for place in places)
        except OSError:
            return None


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _speed(session: Session, job: JobRow) -> float | None:
    """Operations in a second; None when the teacher's size was not known or nothing was trained."""
    teacher = job.inputs.get("teacher_parameters")
    students = session.scalar(select(func.sum(VariantRow.parameters)).where(VariantRow.job_id == job.id))
    lasted = select(func.sum(AttemptRow.ended_at - AttemptRow.started_at)).where(AttemptRow.job_id == job.id)
    seconds = session.scalar(lasted)
    if not teacher or not students or not seconds:
        return None
    return training_operations(JobSpec.model_validate(job.spec), teacher, int(students)) / float(seconds) or None
