"""`foundry.targets`: the devices that a job can name."""

from collections.abc import Iterator

from foundry.client.pages import every
from foundry.client.transport import Transport
from foundry.spec.resources import Target


class Targets:
    """Device profiles of the service."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Target]:
        """Every device profile."""
        return every(self._transport, "/v1/targets", Target)
