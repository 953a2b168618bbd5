"""Variants as they are listed, described and downloaded."""

import json
from pathlib import Path

import pytest

from foundry.errors import NotFound
from foundry.spec.variant import Artifact
from foundry.store.artifacts import LocalArtifacts
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.records import NewVariant
from foundry.store.variants import Variants
from tests import factories


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "artifacts")


@pytest.fixture
def variants(database: Database, artifacts: LocalArtifacts) -> Variants:
    return Variants(database, artifacts)


@pytest.fixture
def new(artifacts: LocalArtifacts, tmp_path: Path) -> NewVariant:
    """A variant with two real files."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    kept = artifacts.put(weights)
    file = Artifact(path="safetensors/model.safetensors", bytes=kept.bytes, sha256=kept.sha256, format="safetensors")
    manifest = factories.manifest("kiosk", (file,))
    path = tmp_path / "manifest.json"
    path.write_text(manifest.model_dump_json())
    itself = artifacts.put(path)
    files = (Artifact(path="manifest.json", bytes=itself.bytes, sha256=itself.sha256), file)
    return NewVariant(manifest=manifest, manifest_sha256=itself.sha256, files=files)


def test_variant_is_described_by_its_manifest(variants: Variants, jobs: Jobs, project_id: str, new: NewVariant) -> None:
    [variant_id] = jobs.succeed(factories.running(jobs, project_id), [new]).variant_ids
    variant = variants.get(project_id, variant_id)
    assert (variant.target, variant.parameters, variant.fits_budget) == ("kiosk", 100_000, True)
    assert variant.files == new.files
    assert variant.bytes == sum(file.bytes for file in new.files)
    assert variants.manifest(project_id, variant_id) == json.loads(new.manifest.model_dump_json())


def test_file_gives_the_bytes_and_their_record(
    variants: Variants, jobs: Jobs, project_id: str, new: NewVariant
) -> None:
    [variant_id] = jobs.succeed(factories.running(jobs, project_id), [new]).variant_ids
    path, artifact = variants.file(project_id, variant_id, "safetensors/model.safetensors")
    assert path.read_bytes() == b"weights"
    assert artifact == new.files[1]


@pytest.mark.parametrize(
    "path", ["nothing.bin", "", "../manifest.json", "safetensors", "/etc/passwd", "manifest.json\0"]
)
def test_file_is_not_found_with_the_list_of_files_when_the_path_is_another(
    variants: Variants, jobs: Jobs, project_id: str, new: NewVariant, path: str
) -> None:
    [variant_id] = jobs.succeed(factories.running(jobs, project_id), [new]).variant_ids
    with pytest.raises(NotFound, match=r"manifest\.json, safetensors/model\.safetensors"):
        variants.file(project_id, variant_id, path)


def test_list_shows_the_variants_of_one_job_or_of_all(variants: Variants, jobs: Jobs, project_id: str) -> None:
    first = jobs.succeed(
        factories.running(jobs, project_id), [factories.new_variant("kiosk"), factories.new_variant("watch")]
    )
    second = jobs.succeed(factories.running(jobs, project_id), [factories.new_variant()])
    assert {variant.id for variant in variants.list(project_id, job_id=first.id).data} == set(first.variant_ids)
    page = variants.list(project_id, limit=2)
    assert page.data[0].id == second.variant_ids[0] and page.has_more
    assert len(variants.list(project_id, limit=2, after=page.next).data) == 1


def test_variant_of_another_project_is_not_found_by_any_method(
    variants: Variants, jobs: Jobs, database: Database, project_id: str, new: NewVariant
) -> None:
    [variant_id] = jobs.succeed(factories.running(jobs, project_id), [new]).variant_ids
    other = factories.project(database, "other")
    for method in (variants.get, variants.manifest, lambda project, id: variants.file(project, id, "manifest.json")):
        with pytest.raises(NotFound, match=variant_id):
            method(other, variant_id)
    assert variants.list(other).data == ()
