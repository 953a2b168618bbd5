"""The commands that talk to a service: submit, watch, jobs, cancel, download."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foundry.cli.service_client import AsJson, JobId, service

if TYPE_CHECKING:
    from foundry.client.client import Foundry


def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job. A data file is uploaded first; a teacher folder must be readable by the service."""
    from foundry.cli import render
    from foundry.cli.specfile import read_spec
    from foundry.spec.job import is_hub_id

    request = read_spec(spec)
    with service() as foundry:
        if Path(request.data).is_file():
            if not is_hub_id(request.teacher):
                foundry.estimate(request)  # a wrong target, teacher or budget is refused before anything is uploaded
            dataset = foundry.datasets.upload(request.data)
            what = f"{dataset.documents:,} document{'s' * (dataset.documents != 1)}, {render.size(dataset.bytes)}"
            render.say(f"uploaded {request.data} as {dataset.id}: {what}")
            request = request.model_copy(update={"data": dataset.id})
        job = foundry.jobs.create(request)
        if as_json:
            render.print_json(job)
        else:
            print(job.id)
        if watch:
            _follow(foundry, job.id)
        else:
            render.say(f"{job.status}; follow it with: foundry watch {job.id}")


def watch(
    job: Annotated[str, typer.Argument(metavar="JOB|EVALUATION", help="The id of a job or an evaluation.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Follow a job or an evaluation to its end; the exit code says whether it succeeded."""
    from foundry.cli import evaluations

    with service() as foundry:
        work = foundry.evaluations if evaluations.is_evaluation(job) else foundry.jobs
        if as_json:
            work.wait(job, progress=lambda event: print(event.model_dump_json(), flush=True))
        elif evaluations.is_evaluation(job):
            evaluations.follow(foundry, job)
        else:
            _follow(foundry, job)


def _follow(foundry: "Foundry", job_id: str) -> None:
    from foundry.cli import render, tables

    try:
        foundry.jobs.wait(job_id)
    except KeyboardInterrupt:
        render.say(f"the job goes on: foundry watch {job_id}, foundry cancel {job_id}", style="yellow")
        raise
    render.out().print(tables.variants_table(foundry.variants.list(job_id=job_id)))
    render.say(f"bring them here with: foundry download {job_id}")


def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs that stand there, such as running.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from foundry.cli import render, tables

    with service() as foundry:
        found = list(foundry.jobs.list(status=status, limit=limit))
    empty = "no jobs" + (f" are {status}" if status else "; submit one with: foundry submit SPEC")
    render.show_table(found, as_json, tables.jobs_table, empty)


def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job for good."""
    from foundry.cli import render

    with service() as foundry:
        render.show_status(foundry.jobs.cancel(job), as_json)


def download(
    source: Annotated[
        str, typer.Argument(metavar="JOB|VARIANT", help="A variant's id, or a job's for all its variants.")
    ],
    to: Annotated[
        Path, typer.Option("--output", "-o", help="Each variant goes into a folder named after its target.")
    ] = Path(),
    files: Annotated[
        list[str] | None, typer.Option("--file", "-f", help="Only files with this path or pattern, such as '*.gguf'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download variants. Started again, it goes on where it broke off; every file is checked against its digest."""
    from foundry.cli import render
    from foundry.client.download import place
    from foundry.errors import NotFound

    with service() as foundry:
        if source.startswith("job_"):
            variants = list(foundry.variants.list(job_id=foundry.jobs.get(source).id))
        else:
            variants = [foundry.variants.get(source)]
        if not variants:
            raise NotFound(f"job {source} has no variants (yet); see how it stands with: foundry watch {source}")
        folders = [
            foundry.variants.download(v.id, place(to, v.target), files=files, progress=not as_json) for v in variants
        ]
    if as_json:
        render.print_json({v.id: str(folder) for v, folder in zip(variants, folders, strict=True)})
    else:
        for folder in folders:
            print(folder)
