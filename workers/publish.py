"""From the folders that a run left to records the store can publish. Every byte is checked against its manifest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundry.engine.export.manifest import NAME, check_folder, read_manifest
from foundry.engine.export.signature import SigningKey
from foundry.engine.workspace import Workspace, read_json
from foundry.errors import ArtifactDamaged
from foundry.spec.job import JobSpec
from foundry.spec.variant import Artifact
from foundry.store.artifacts import ArtifactStore
from foundry.store.records import NewVariant


def store_variants(
    workspace: Workspace, spec: JobSpec, artifacts: ArtifactStore, key: SigningKey
) -> tuple[NewVariant, ...]:
    """Check what result.json names, sign each manifest and put every file into the artifact store.

    Raises `ArtifactDamaged` when something is missing, unexpected or changed, and `StorageFull`.
    """
    variants = tuple(_store(folder, artifacts, key) for folder in _folders(workspace))
    made, wanted = sorted(v.manifest.target for v in variants), sorted(spec.target_names)
    if made != wanted:
        raise ArtifactDamaged(f"the run made variants for {', '.join(made) or 'nothing'}, not for {', '.join(wanted)}")
    return variants


def _folders(workspace: Workspace) -> Iterator[Path]:
    path = workspace.root / "result.json"
    try:
        named: Any = read_json(path)["variants"]
    except FileNotFoundError as error:
        raise ArtifactDamaged("the run ended as if all was done but wrote no result.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactDamaged(f"result.json cannot be read: {error!r}") from error
    root = workspace.root.resolve()
    for name in named if isinstance(named, list) else [named]:
        folder = (root / str(name)).resolve()
        if not folder.is_relative_to(root) or not folder.is_dir():
            raise ArtifactDamaged(f"result.json names {name!r:.200}, which is no folder of the workspace")
        yield folder


def _store(folder: Path, artifacts: ArtifactStore, key: SigningKey) -> NewVariant:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ArtifactDamaged(f"{path.relative_to(folder)} is a link; a variant holds its own bytes")
    check_folder(folder)
    key.sign(folder / NAME)
    manifest = read_manifest(folder)
    for file in manifest.files:
        artifacts.put(folder / file.path, sha256=file.sha256)
    itself = artifacts.put(folder / NAME)
    listed = Artifact(path=NAME, bytes=itself.bytes, sha256=itself.sha256)
    return NewVariant(manifest=manifest, manifest_sha256=itself.sha256, files=(listed, *manifest.files))
