"""`foundry.targets`: the devices that a job can name."""

from foundry.client import resource
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, listing, verb
from foundry.client.pages import every
from foundry.spec.resources import Target

_PATH = "/v1/targets"


class Targets(Resource[T]):
    """Device profiles of the service, and devices that the project described itself."""

    @listing
    def list(self) -> Items[Target]:
        """Every device: the project's own, then those of the service."""
        return every(self._transport, _PATH, Target)

    @verb
    def get(self, name: str) -> Flow[Target]:
        """One device; raises `NotFound`."""
        return (yield from resource.get(self._transport, Target, _PATH, name))

    @verb
    def put(
        self, name: str, *, max_bytes: float | None = None, max_params: float | None = None,
        memory_bytes: float | None = None, runtime_overhead_bytes: float | None = None,
        memory_bandwidth_bytes_per_s: float | None = None, compute_ops_per_s: float | None = None,
        minimum_tokens_per_s: float | None = None, context_tokens: int | None = None, format: str | None = None,
        description: str = "",
    ) -> Flow[Target]:  # fmt: skip
        """Describe a device of the project's own, or describe it anew; give exactly one of the first three limits."""
        given = {
            "max_bytes": max_bytes, "max_params": max_params, "memory_bytes": memory_bytes,
            "runtime_overhead_bytes": runtime_overhead_bytes,
            "memory_bandwidth_bytes_per_s": memory_bandwidth_bytes_per_s, "compute_ops_per_s": compute_ops_per_s,
            "minimum_tokens_per_s": minimum_tokens_per_s, "context_tokens": context_tokens, "format": format,
        }  # fmt: skip
        body = {"description": description, **{name: value for name, value in given.items() if value is not None}}
        return (yield from resource.change(self._transport, Target, "PUT", below(_PATH, name), body))

    @verb
    def delete(self, name: str) -> Flow[None]:
        """Forget a device of the project's own; raises `NotFound`."""
        yield from resource.delete(self._transport, below(_PATH, name))
