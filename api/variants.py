"""/v1/variants: finished models and their files."""

from typing import Any

from apiflask import APIBlueprint
from flask import Response

from api.auth import project_id
from api.downloads import send_artifact
from api.openapi import FILE, document
from api.pages import Cursor, PageQuery
from api.state import state
from foundry.spec.resources import Page, Variant
from foundry.spec.variant import VariantManifest

variants = APIBlueprint("variants", __name__)


class VariantsQuery(PageQuery):
    """A page of variants, of one job or of all."""

    job_id: Cursor | None = None
    """Only variants of this job."""


@variants.get("/variants")
@variants.input(VariantsQuery, location="query")
@variants.output(Page[Variant])
def list_variants(query_data: VariantsQuery) -> Page[Variant]:
    """The project's variants, newest first."""
    return state().variants.list(project_id(), query_data.job_id, query_data.limit, query_data.after)


@variants.get("/variants/<variant_id>")
@variants.output(Variant)
def get_variant(variant_id: str) -> Variant:
    """One variant with the digest of every file."""
    return state().variants.get(project_id(), variant_id)


@variants.get("/variants/<variant_id>/manifest")
@variants.doc(responses=document(VariantManifest, "manifest.json as it ships with the variant"))
def get_manifest(variant_id: str) -> dict[str, Any]:
    """Shape, budget, measurements, lineage and files."""
    return state().variants.manifest(project_id(), variant_id)


@variants.get("/variants/<variant_id>/files/<path:path>")
@variants.doc(responses=FILE)
def get_file(variant_id: str, path: str) -> Response:
    """One file, or a part of it by Range; the entity tag is its SHA-256."""
    return send_artifact(*state().variants.file(project_id(), variant_id, path))
