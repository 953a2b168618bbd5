"""What differs between the kinds of work: the folder that a run finds, whether it needs the hub, what comes of it."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foundry.engine.evaluate import alone
from foundry.engine.export.signature import SigningKey
from foundry.engine.workspace import Workspace, read_json
from foundry.errors import ArtifactDamaged, FoundryError
from foundry.spec.evaluation import EvaluationResult, EvaluationSpec
from foundry.spec.job import JobSpec, is_hub_id
from foundry.spec.record import parse
from foundry.store.artifacts import ArtifactStore, storage_errors
from foundry.store.datasets import Datasets
from foundry.store.records import Claim, EvaluationInputs, JobInputs, ModelPlace, NewVariant
from foundry.store.settings import Settings
from workers import folders
from workers.publish import store_variants


class Product(NamedTuple):
    """What comes of a run: variants of a job, or the result of an evaluation."""

    variants: Sequence[NewVariant] = ()
    result: Any = None


def prepare(work: Path, claim: Claim, datasets: Datasets, artifacts: ArtifactStore) -> Workspace:
    """The folder that the run is started in; raise `NotFound` for the data and `StorageFull`."""
    if isinstance(claim.inputs, JobInputs):
        return folders.prepare(work, claim, datasets)
    assert isinstance(claim.spec, EvaluationSpec)
    root = folders.take_over(work, claim)
    with storage_errors(work):
        return Workspace(_evaluation(root, claim, claim.spec, claim.inputs, datasets, artifacts))


def disk_bytes(claim: Claim) -> int | None:
    """What the run needs at least, where that was estimated."""
    return claim.inputs.disk_bytes if isinstance(claim.inputs, JobInputs) else None


def needs_hub(claim: Claim, settings: Settings, environment: Mapping[str, str]) -> bool:
    """Whether the run may use the network: for a model on the hub, and for an evaluation's benchmarks where the
    operator keeps no copies of them and allows the hub."""
    inputs = claim.inputs
    if isinstance(inputs, JobInputs):
        return is_hub_id(inputs.teacher)
    assert isinstance(claim.spec, EvaluationSpec)
    fetches = claim.spec.chosen_suite() is not None and not environment.get("FOUNDRY_BENCHMARKS")
    return (
        inputs.model.needs_hub
        or bool(inputs.teacher and inputs.teacher.needs_hub)
        or (fetches and settings.hub_allowed)
    )


def product_of(workspace: Workspace, claim: Claim, artifacts: ArtifactStore, key: SigningKey) -> Product:
    """What the run has left, checked; raise `ArtifactDamaged` when it is not whole, and `StorageFull`."""
    if isinstance(claim.spec, JobSpec):
        return Product(variants=store_variants(workspace, claim.spec, artifacts, key))
    try:
        result = parse(EvaluationResult, read_json(workspace.root / alone.RESULT))
    except (OSError, ValueError, FoundryError) as error:
        raise ArtifactDamaged(
            f"the run ended as if all was done, but {alone.RESULT} cannot be read: {error}"
        ) from error
    return Product(result=result.model_dump(mode="json"))


def _evaluation(
    root: Path, claim: Claim, spec: EvaluationSpec, inputs: EvaluationInputs, datasets: Datasets,
    artifacts: ArtifactStore,
) -> Path:  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    data = inputs.dataset_id and folders.lay_data(root.parent, claim, inputs.dataset_id, datasets)
    request = alone.Request(
        spec=spec, model=_laid_out(inputs.model, root / "model", artifacts), name=inputs.model.name,
        teacher=_laid_out(inputs.teacher, root / "teacher", artifacts) if inputs.teacher else None,
        teacher_name=inputs.teacher.name if inputs.teacher else None, data=str(data) if data else None,
    )  # fmt: skip
    alone.write_request(root, request)
    return root


def _laid_out(place: ModelPlace, folder: Path, artifacts: ArtifactStore) -> str:
    """Where the run finds a model: as it is, or its files under their names, without a second copy where it goes."""
    if not place.files:
        return place.source
    shutil.rmtree(folder, ignore_errors=True)
    for file in place.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        stored = artifacts.path(file.sha256)
        try:
            os.link(stored, target)
        except OSError:  # another file system
            shutil.copyfile(stored, target)
    return str(folder)
