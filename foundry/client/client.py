"""`Foundry`: one service, one key, and the resources behind it."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from foundry.client.datasets import Datasets
from foundry.client.home import find_service
from foundry.client.jobs import Jobs, spec_body
from foundry.client.targets import Targets
from foundry.client.transport import RETRIES, Transport
from foundry.client.variants import Variants
from foundry.spec.estimate import Estimate
from foundry.spec.job import JobSpec


class Foundry:
    """The client.

        with Foundry() as foundry:                       # the service that `foundry up` started
            data = foundry.datasets.upload("domain.jsonl")
            job = foundry.jobs.create(teacher="/models/teacher", data=data.id, targets=["smartphone"])
            job = foundry.jobs.wait(job.id)
            foundry.variants.download(job.variant_ids[0], to="variant")

    Without `url` and `key` it looks at FOUNDRY_URL and FOUNDRY_KEY, then into the folder that `foundry up` writes.
    `timeout` is in seconds for one silence on the line, `retries` how often a call that may be repeated is sent again.
    Safe to share between threads.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        transport: httpx2.BaseTransport | None = None,
        timeout: float = 60.0,
        retries: int = RETRIES,
    ) -> None:
        address = find_service(url, key)
        self.url = address.url
        self._transport = Transport(address.url, address.key, transport=transport, timeout=timeout, retries=retries)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.variants = Variants(self._transport)
        self.targets = Targets(self._transport)

    def estimate(self, spec: JobSpec | Mapping[str, Any] | None = None, **fields: Any) -> Estimate:
        """What a job would give, by arithmetic alone: shape, parameters and bytes for each target and format.

        Takes what `jobs.create` takes; nothing is stored. Raises a refusal with the smallest reachable size in its
        problem document when a budget cannot be met.
        """
        answer = self._transport.call("POST", "/v1/customization/estimates", json=spec_body(spec, fields))
        return self._transport.read(Estimate, answer)

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Foundry({self.url!r})"
