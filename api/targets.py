"""/v1/targets and /v1/formats: what a job can be for, and how it can be written."""

from apiflask import APIBlueprint

from api.pages import PageQuery, page_of
from foundry.spec.device import DeviceProfile, device_profiles
from foundry.spec.formats import FORMATS, parse_format
from foundry.spec.resources import Page, Resource, Target

targets = APIBlueprint("targets", __name__)


class FormatName(Resource):
    """One way to write a variant."""

    name: str
    container: str
    quantisation: str


@targets.get("/targets")
@targets.input(PageQuery, location="query")
@targets.output(Page[Target])
def list_targets(query_data: PageQuery) -> Page[Target]:
    """The device profiles that `targets` of a job may name."""
    known = [_target(profile) for profile in device_profiles().values()]
    return page_of(known, query_data, lambda target: target.name)


@targets.get("/formats")
@targets.input(PageQuery, location="query")
@targets.output(Page[FormatName])
def list_formats(query_data: PageQuery) -> Page[FormatName]:
    """The formats that `formats` of a job may name."""
    known = [FormatName(name=name, **parse_format(name).model_dump()) for name in FORMATS]
    return page_of(known, query_data, lambda form: form.name)


def _target(profile: DeviceProfile) -> Target:
    return Target(
        name=profile.name,
        description=profile.description,
        memory_bytes=profile.memory_bytes,
        max_bytes=profile.max_bytes,
        memory_bandwidth_bytes_per_s=profile.memory_bandwidth_bytes_per_s,
        compute_ops_per_s=profile.compute_ops_per_s,
        context_tokens=profile.context_tokens,
        minimum_tokens_per_s=profile.minimum_tokens_per_s,
        runtime=profile.runtime,
        format=profile.format,
        formats=profile.formats,
        sources=tuple(source.model_dump() for source in profile.sources),
    )
