"""/v1/variants and /v1/aliases: finished models, their files, and names that point to them."""

import re
from http import HTTPStatus
from typing import Annotated, Any

from apiflask import APIBlueprint
from flask import redirect
from pydantic import Field
from werkzeug import Response

from api.auth import needs, project_id
from api.downloads import send_artifact
from api.openapi import FILE, document
from api.pages import Cursor, PageQuery
from api.records import Body
from api.state import state
from foundry.errors import FieldProblem, InvalidSpec
from foundry.spec.access import Scope
from foundry.spec.library import Alias
from foundry.spec.resources import Page, Variant, VariantLineage
from foundry.spec.variant import VariantManifest

variants = APIBlueprint("variants", __name__)
_LINK_S = 600.0
_ALIAS = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class VariantsQuery(PageQuery):
    """A page of variants, of one job or of all."""

    job_id: Cursor | None = None
    """Only variants of this job."""


class AliasBody(Body):
    """Where the name is to point."""

    variant_id: Annotated[str, Field(min_length=1, max_length=200)]
    """A variant of the project."""


@variants.get("/variants")
@needs(Scope.VARIANTS_READ)
@variants.input(VariantsQuery, location="query")
@variants.output(Page[Variant])
def list_variants(query_data: VariantsQuery) -> Page[Variant]:
    """The project's variants, newest first."""
    return state().variants.list(project_id(), query_data.job_id, query_data.limit, query_data.after)


@variants.get("/variants/<variant_id>")
@needs(Scope.VARIANTS_READ)
@variants.output(Variant)
def get_variant(variant_id: str) -> Variant:
    """One variant with the digest of every file."""
    return state().variants.get(project_id(), variant_id)


@variants.delete("/variants/<variant_id>")
@needs(Scope.VARIANTS_WRITE)
@variants.output({}, 204)
@variants.doc(responses=[409])
def delete(variant_id: str) -> str:
    """Delete a variant; its bytes go within two hours. Refused with 409 while an alias points to it."""
    state().removal.variant(project_id(), variant_id)
    return ""


@variants.get("/variants/<variant_id>/manifest")
@needs(Scope.VARIANTS_READ)
@variants.doc(responses=document(VariantManifest, "manifest.json as it ships with the variant"))
def get_manifest(variant_id: str) -> dict[str, Any]:
    """Shape, budget, measurements, lineage and files."""
    return state().variants.manifest(project_id(), variant_id)


@variants.get("/variants/<variant_id>/lineage")
@needs(Scope.VARIANTS_READ)
@variants.output(VariantLineage)
def get_lineage(variant_id: str) -> VariantLineage:
    """From which teacher, data and jobs the variant came."""
    return state().variants.lineage(project_id(), variant_id)


@variants.get("/variants/<variant_id>/files/<path:path>")
@needs(Scope.VARIANTS_READ)
@variants.doc(responses=FILE)
def get_file(variant_id: str, path: str) -> Response:
    """One file, or a part of it by Range; the entity tag is its SHA-256.

    Where the service keeps its artifacts in a bucket, the answer may be 307 with a link into it, good for ten minutes.
    """
    memory = state()
    if memory.settings.downloads == "presigned":
        artifact = memory.variants.artifact(project_id(), variant_id, path)
        if link := memory.artifacts.link(artifact.sha256, _LINK_S):
            return redirect(link, HTTPStatus.TEMPORARY_REDIRECT)
    return send_artifact(*memory.variants.file(project_id(), variant_id, path))


@variants.get("/aliases")
@needs(Scope.VARIANTS_READ)
@variants.input(PageQuery, location="query")
@variants.output(Page[Alias])
def list_aliases(query_data: PageQuery) -> Page[Alias]:
    """The project's aliases by name."""
    return state().aliases.list(project_id(), query_data.limit, query_data.after)


@variants.get("/aliases/<alias>")
@needs(Scope.VARIANTS_READ)
@variants.output(Alias)
def get_alias(alias: str) -> Alias:
    """Where a name points to now."""
    return state().aliases.get(project_id(), alias)


@variants.put("/aliases/<alias>")
@needs(Scope.VARIANTS_WRITE)
@variants.input(AliasBody)
@variants.output(Alias)
@variants.doc(responses=[400, 415])
def put_alias(alias: str, json_data: AliasBody) -> Alias:
    """Let a name point to a variant from now on."""
    return point_alias(alias, json_data)


def point_alias(alias: str, body: AliasBody) -> Alias:
    """Move a name of the caller's project, or make it; raise `InvalidSpec` for what is no name."""
    if not re.fullmatch(_ALIAS, alias):
        detail = "an alias has 1 to 64 of a-z, 0-9, dot, dash and underscore, and begins with a letter or digit"
        raise InvalidSpec([FieldProblem(pointer="/path/alias", code="string_pattern_mismatch", detail=detail)])
    return state().aliases.put(project_id(), alias, body.variant_id)


@variants.delete("/aliases/<alias>")
@needs(Scope.VARIANTS_WRITE)
@variants.output({}, 204)
def delete_alias(alias: str) -> str:
    """Forget a name; the variant stays."""
    state().aliases.delete(project_id(), alias)
    return ""
