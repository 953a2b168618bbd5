"""The work folder of a job: WORK/JOB/EPOCH, one level for each attempt, taken over by renaming."""

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from foundry.engine.workspace import Inputs, Workspace, sync
from foundry.intake.documents import SUFFIX_OF
from foundry.spec.job import JobSpec
from foundry.store.artifacts import storage_errors
from foundry.store.datasets import Datasets
from foundry.store.records import Claim, JobInputs


def prepare(work: Path, claim: Claim, datasets: Datasets) -> Workspace:
    """The workspace of a job's attempt, as `take_over` leaves it; raise `NotFound` for the data and `StorageFull`."""
    assert isinstance(claim.spec, JobSpec) and isinstance(claim.inputs, JobInputs)
    root = take_over(work, claim)
    with storage_errors(work):
        data = lay_data(root.parent, claim, claim.inputs.dataset_id, datasets)
        inputs = Inputs(
            teacher=claim.inputs.teacher, data=str(data), data_sha256=claim.inputs.data_sha256,
            micro_batch_divisor=2**claim.halvings,
        )  # fmt: skip
        return Workspace.create(root, claim.spec, inputs)


def take_over(work: Path, claim: Claim) -> Path:
    """The folder of this attempt, with all that the attempt before left in it; not there when there was none.

    Renaming takes the paths away from a run of an older attempt that does not know yet that it is over: whatever it
    writes from now on lands nowhere. Raises `StorageFull`.
    """
    job = work / claim.job_id
    root = job / str(claim.epoch)
    with storage_errors(work):
        job.mkdir(parents=True, exist_ok=True)
        earlier = sorted((path for path in job.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        if earlier:
            earlier.pop().rename(root)
        for left in earlier:  # made again by a run that had lost its folder
            shutil.rmtree(left, ignore_errors=True)
        sync(job)
    return root


def lay_data(job: Path, claim: Claim, dataset_id: str, datasets: Datasets) -> Path:
    """A link to the data in the job's folder, by a name that says how to read it; raise `NotFound`."""
    dataset = datasets.get(claim.project_id, dataset_id)
    data = job / f"data{SUFFIX_OF[dataset.format]}"
    _link(data, datasets.file(claim.project_id, dataset.id))
    return data


def remove(work: Path, job_id: str) -> None:
    """The job has ended: nothing in its folder is needed any more."""
    shutil.rmtree(work / job_id, ignore_errors=True)


def sweep(work: Path, ended_among: Callable[[list[str]], Collection[str]]) -> list[str]:
    """Remove what jobs left that ended without a worker, such as one cancelled while it was paused."""
    if not work.is_dir():
        return []
    ended = sorted(ended_among([path.name for path in work.iterdir() if path.is_dir()]))
    for job_id in ended:
        remove(work, job_id)
    return ended


def _link(link: Path, target: Path) -> None:
    """Make `link` the same file as `target`, whatever it was before. No copy: data can be large and never changes.

    A hard link where the disk is the same: it stays when the store lets go of its own copy.
    """
    aside = link.with_name(f".{link.name}.{os.getpid()}.partial")
    aside.unlink(missing_ok=True)
    try:
        aside.hardlink_to(target)
    except OSError:  # another disk, or one that knows no such links
        aside.symlink_to(target)
    aside.replace(link)
    aside.unlink(missing_ok=True)  # renaming onto another name of the same file does nothing
