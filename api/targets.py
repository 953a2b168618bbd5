"""/v1/targets and /v1/formats: what a job can be for, and how it can be written."""

from typing import Annotated

from apiflask import APIBlueprint
from pydantic import Field

from api.auth import needs, project_id
from api.pages import PageQuery, page_of
from api.records import Body
from api.state import state
from foundry.spec.access import Scope
from foundry.spec.device import DeviceProfile, device_profiles
from foundry.spec.formats import FORMATS, parse_format
from foundry.spec.job import RUNTIME_OVERHEAD_BYTES, CustomTarget
from foundry.spec.record import Count, parse
from foundry.spec.resources import Page, Resource, Target
from foundry.spec.speed import Bandwidth, Compute, LeastSpeed

targets = APIBlueprint("targets", __name__)


class FormatName(Resource):
    """One way to write a variant."""

    name: str
    """What `formats` of a job names."""
    container: str
    """safetensors, gguf or onnx."""
    quantisation: str
    """How weights are written in it; empty for safetensors."""


class TargetBody(Body):
    """A device. Exactly one of `max_bytes`, `max_params` and `memory_bytes` is given."""

    description: Annotated[str, Field(max_length=1000)] = ""
    """For people."""
    max_bytes: Count | None = None
    """The file in the device format plus the KV cache at `context_tokens`."""
    max_params: Count | None = None
    """Parameters of the model, in place of bytes."""
    memory_bytes: Count | None = None
    """What the model's process may take: file, cache and `runtime_overhead_bytes`."""
    runtime_overhead_bytes: Count = RUNTIME_OVERHEAD_BYTES
    """What the runtime takes of `memory_bytes` for itself; without that it has no effect."""
    memory_bandwidth_bytes_per_s: Bandwidth = None
    compute_ops_per_s: Compute = None
    minimum_tokens_per_s: LeastSpeed = None
    context_tokens: Count = 2048
    """Length of the text whose KV cache has to fit; a teacher with less counts with its own."""
    format: str | None = None
    """The format the device runs; by default the job's first GGUF, else its first format."""


@targets.get("/targets")
@needs(Scope.TARGETS_READ)
@targets.input(PageQuery, location="query")
@targets.output(Page[Target])
def list_targets(query_data: PageQuery) -> Page[Target]:
    """The devices that `targets` of a job may name: the project's own, then those of the service."""
    return page_of(known_targets(), query_data, lambda target: target.name)


@targets.get("/targets/<name>")
@needs(Scope.TARGETS_READ)
@targets.output(Target)
def get_target(name: str) -> Target:
    """One device."""
    profile = device_profiles().get(name)
    return _target(profile) if profile else state().targets.get(project_id(), name)


@targets.put("/targets/<name>")
@needs(Scope.TARGETS_WRITE)
@targets.input(TargetBody)
@targets.output(Target)
@targets.doc(responses=[400, 409, 415])
def put_target(name: str, json_data: TargetBody) -> Target:
    """Describe a device of the project's own, or describe it anew; jobs submitted before keep what it was."""
    return describe_target(name, json_data)


@targets.delete("/targets/<name>")
@needs(Scope.TARGETS_WRITE)
@targets.output({}, 204)
def delete_target(name: str) -> str:
    """Forget a device of the project's own."""
    state().targets.delete(project_id(), name)
    return ""


@targets.get("/formats")
@needs(Scope.TARGETS_READ)
@targets.input(PageQuery, location="query")
@targets.output(Page[FormatName])
def list_formats(query_data: PageQuery) -> Page[FormatName]:
    """The formats that `formats` of a job may name."""
    known = [FormatName(name=name, **parse_format(name).model_dump()) for name in FORMATS]
    return page_of(known, query_data, lambda form: form.name)


def known_targets() -> list[Target]:
    """The project's own devices, then those of the service."""
    return state().targets.all(project_id()) + [_target(profile) for profile in device_profiles().values()]


def describe_target(name: str, body: TargetBody) -> Target:
    """Keep a device of the project's own; raise `InvalidSpec` for one that cannot be."""
    fields = body.model_dump(exclude={"description"}, exclude_none=True)
    return state().targets.put(project_id(), parse(CustomTarget, {"name": name, **fields}), body.description)


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
