"""The groups of commands about what a project keeps: datasets, models, variants, aliases."""

from pathlib import Path
from typing import Annotated

import typer

from foundry.cli.service_client import AsJson, Limit, service

datasets = typer.Typer(no_args_is_help=True, help="Data, uploaded once and used in many jobs.")
models = typer.Typer(no_args_is_help=True, help="Teachers that the project has registered.")
variants = typer.Typer(no_args_is_help=True, help="Finished models.")
aliases = typer.Typer(no_args_is_help=True, help="Names that point to variants.")
DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="A dataset's id.")]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="A model's id.")]
VariantId = Annotated[str, typer.Argument(metavar="VARIANT", help="A variant's id.")]


@datasets.command("list")
def list_datasets(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.datasets.list(limit=limit))
    render.show_records(found, as_json, "id", "name", "format", "documents", "bytes", "created_at")


@datasets.command("upload")
def upload_dataset(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .jsonl, .parquet or .txt file.")],
    as_json: AsJson = False,
) -> None:
    """Upload a file; an interrupted upload goes on where it stopped. Prints the dataset's id."""
    from foundry.cli import render
    from foundry.client.progress import DownloadProgress

    with service() as foundry, DownloadProgress() as bar:
        made = foundry.datasets.upload(file, progress=lambda done, total: bar(file.name, done, total))
        report = foundry.datasets.validation(made.id)
    if as_json:
        render.print_json({"dataset": made.model_dump(mode="json"), "validation": report.model_dump(mode="json")})
        return
    print(made.id)
    for warning in report.warnings:
        render.say(f"warning: {warning}", style="yellow")


@datasets.command("show")
def show_dataset(dataset: DatasetId, as_json: AsJson = False) -> None:
    """Show what was found in a dataset."""
    from foundry.cli import render

    with service() as foundry:
        found, report = foundry.datasets.get(dataset), foundry.datasets.validation(dataset)
    more = report.model_dump(mode="json", exclude={"dataset_id", "documents"})
    render.show_record(found, as_json, **more)


@datasets.command("preview")
def preview_dataset(
    dataset: DatasetId, limit: Limit = 5, characters: Annotated[int, typer.Option(min=1)] = 300, as_json: AsJson = False
) -> None:
    """Show the first documents as a job would read them."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.datasets.preview(dataset, limit=limit, characters=characters))
    if as_json:
        render.print_json(found)
        return
    for row in found:
        render.show_pairs(row.model_dump(exclude_none=True, exclude={"key"}))


@datasets.command("delete")
def delete_dataset(dataset: DatasetId, as_json: AsJson = False) -> None:
    """Delete a dataset and its bytes."""
    from foundry.cli import render

    with service() as foundry:
        foundry.datasets.delete(dataset)
    render.show_done(as_json, "deleted", dataset)


@models.command("list")
def list_models(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List registered teachers, newest first."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.models.list(limit=limit))
    render.show_records(found, as_json, "id", "name", "kind", "family", "parameters", "source")


@models.command("add")
def add_model(
    source: Annotated[str, typer.Argument(help="A folder here (uploaded), or ORG/NAME@COMMIT on the hub.")],
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    on_service: Annotated[bool, typer.Option("--on-service", help="The folder is on the service's machine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register a teacher. Prints the model's id, which a spec names as `teacher`."""
    from foundry.cli import render
    from foundry.client.progress import DownloadProgress

    repository, _, revision = source.partition("@")
    with service() as foundry:
        if on_service:
            made = foundry.models.from_folder(source, name or Path(source).name)
        elif revision and not Path(source).is_dir():
            made = foundry.models.from_hub(repository, revision, name)
        else:
            with DownloadProgress() as bar:
                made = foundry.models.upload(source, name, progress=lambda done, total: bar(source, done, total))
    render.show_id(made, as_json)


@models.command("delete")
def delete_model(model: ModelId, as_json: AsJson = False) -> None:
    """Forget a model; uploaded files go."""
    from foundry.cli import render

    with service() as foundry:
        foundry.models.delete(model)
    render.show_done(as_json, "deleted", model)


@variants.command("list")
def list_variants(
    job: Annotated[str | None, typer.Option(help="Only variants of this job.")] = None, limit: Limit = 20,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List variants, newest first."""
    from foundry.cli import render, tables

    with service() as foundry:
        found = list(foundry.variants.list(job_id=job, limit=limit))
    render.show_table(found, as_json, tables.variants_table, "no variants yet")


@variants.command("lineage")
def show_lineage(variant: VariantId, as_json: AsJson = False) -> None:
    """Show from which teacher, data and jobs a variant came."""
    from foundry.cli import render

    with service() as foundry:
        found = foundry.variants.lineage(variant)
    render.show_record(found, as_json)


@variants.command("delete")
def delete_variant(variant: VariantId, as_json: AsJson = False) -> None:
    """Delete a variant and its files."""
    from foundry.cli import render

    with service() as foundry:
        foundry.variants.delete(variant)
    render.show_done(as_json, "deleted", variant)


@aliases.command("list")
def list_aliases(as_json: AsJson = False) -> None:
    """List aliases by name."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.aliases.list())
    render.show_records(found, as_json, "name", "variant_id", "updated_at")


@aliases.command("set")
def set_alias(
    name: Annotated[str, typer.Argument(metavar="NAME")], variant: VariantId, as_json: AsJson = False
) -> None:
    """Let a name point to a variant from now on."""
    from foundry.cli import render

    with service() as foundry:
        made = foundry.aliases.put(name, variant)
    render.show_record(made, as_json)


@aliases.command("delete")
def delete_alias(name: Annotated[str, typer.Argument(metavar="NAME")], as_json: AsJson = False) -> None:
    """Forget a name; the variant stays."""
    from foundry.cli import render

    with service() as foundry:
        foundry.aliases.delete(name)
    render.show_done(as_json, "deleted", name)
