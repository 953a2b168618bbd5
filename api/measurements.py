"""/v1/variants/{id}/measurements: what a variant did on devices."""

from apiflask import APIBlueprint

from api.auth import caller, needs, project_id
from api.idempotency import CreateHeaders, idempotency
from api.pages import PageQuery
from api.state import state
from foundry.errors import FieldProblem, InvalidSpec, UnknownTarget
from foundry.spec.access import Scope
from foundry.spec.measurement import Measurement, NewMeasurement, judge
from foundry.spec.resources import Page
from foundry.spec.target import Budget, budget_of
from foundry.spec.variant import VariantManifest

measurements = APIBlueprint("measurements", __name__)


@measurements.post("/variants/<variant_id>/measurements")
@needs(Scope.VARIANTS_WRITE)
@measurements.input(NewMeasurement)
@measurements.input(CreateHeaders, location="headers")
@measurements.output(Measurement, 201)
@measurements.doc(responses=[400, 415])
def create(variant_id: str, json_data: NewMeasurement, headers_data: CreateHeaders) -> Measurement:
    """Keep what a variant did on a device, and say whether that is within the budget of its target or of another."""
    variant = state().variants.get(project_id(), variant_id)
    if json_data.manifest_sha256 != variant.manifest_sha256:
        detail = f"these are not the files of {variant_id}, whose manifest.json has {variant.manifest_sha256}"
        raise InvalidSpec([FieldProblem(pointer="/manifest_sha256", code="other_variant", detail=detail)])
    manifest = VariantManifest.model_validate(state().variants.manifest(project_id(), variant_id))
    judged = judge(json_data, manifest, _budget(json_data, manifest))
    once = idempotency(headers_data, variant_id, json_data.model_dump_json())
    return state().measurements.create(project_id(), variant_id, json_data, judged, once, key_id=caller().id)


@measurements.get("/variants/<variant_id>/measurements")
@needs(Scope.VARIANTS_READ)
@measurements.input(PageQuery, location="query")
@measurements.output(Page[Measurement])
def list_measurements(variant_id: str, query_data: PageQuery) -> Page[Measurement]:
    """What the variant did on devices, newest first."""
    return state().measurements.list(project_id(), variant_id, query_data.limit, query_data.after)


def _budget(new: NewMeasurement, manifest: VariantManifest) -> Budget:
    """Of the target that was asked about, with the cache no longer than the model's; else the variant's own.

    Raises `UnknownTarget`.
    """
    if new.target is None:
        return manifest.budget
    spec = state().targets.resolve(project_id(), manifest.spec.model_copy(update={"targets": (new.target,)}))
    attached = manifest.spec.attached_rank  # the variant's own budget has none where ONNX Runtime runs it
    try:
        return budget_of(spec.targets[0], manifest.spec.formats, manifest.budget.context_tokens, attached)
    except UnknownTarget as error:
        raise UnknownTarget(
            f"unknown target {new.target!r}; GET /v1/targets lists them, and PUT /v1/targets/NAME describes one of "
            "your own",
            pointer="/target",
        ) from error
