"""`Foundry` and `AsyncFoundry`: one service, one key, and the resources behind it."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Generic, Self

import httpx2

from foundry.client.access import Account, Keys, Members, Projects
from foundry.client.datasets import Datasets
from foundry.client.evaluations import Evaluations
from foundry.client.exchange import RETRIES
from foundry.client.flow import T
from foundry.client.home import find_service
from foundry.client.jobs import Jobs
from foundry.client.models import Models
from foundry.client.targets import Targets
from foundry.client.transport import AsyncTransport, Transport
from foundry.client.uploads import Uploads
from foundry.client.variants import Aliases, Variants
from foundry.client.webhooks import Webhooks
from foundry.spec.forecast import JobEstimate
from foundry.spec.job import JobSpec


class _Resources(Generic[T]):
    """Everything that a service has, on a transport of either kind."""

    def __init__(self, transport: T) -> None:
        self.url = transport.url
        self._transport: T = transport
        self.datasets: Datasets[T] = Datasets(transport)
        self.uploads: Uploads[T] = Uploads(transport)
        self.models: Models[T] = Models(transport)
        self.targets: Targets[T] = Targets(transport)
        self.jobs: Jobs[T] = Jobs(transport)
        self.evaluations: Evaluations[T] = Evaluations(transport)
        self.variants: Variants[T] = Variants(transport)
        self.aliases: Aliases[T] = Aliases(transport)
        self.webhooks: Webhooks[T] = Webhooks(transport)
        self.keys: Keys[T] = Keys(transport)
        self.members: Members[T] = Members(transport)
        self.projects: Projects[T] = Projects(transport)
        self.account: Account[T] = Account(transport)

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({self.url!r})"


class Foundry(_Resources[Transport]):
    """The client.

        with Foundry() as foundry:                       # the service that `foundry up` started
            data = foundry.datasets.upload("domain.jsonl")
            job = foundry.jobs.create(teacher="/models/teacher", data=data.id, targets=["smartphone"])
            job = foundry.jobs.wait(job.id)
            foundry.variants.download(job.variant_ids[0], to="variant")

    Without `url` and `key` it looks at FOUNDRY_URL and FOUNDRY_KEY, then at the profile that `foundry login` wrote
    (`profile`, FOUNDRY_PROFILE, or the default one), then into the folder that `foundry up` writes. `timeout` is in
    seconds for one silence on the line, `retries` how often a call that may be repeated is sent again. Safe to share
    between threads.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, profile: str | None = None,
        transport: httpx2.BaseTransport | None = None, timeout: float = 60.0, retries: int = RETRIES,
    ) -> None:  # fmt: skip
        address = find_service(url, key, profile)
        super().__init__(Transport(address.url, address.key, transport=transport, timeout=timeout, retries=retries))

    def estimate(self, spec: JobSpec | Mapping[str, Any] | None = None, **fields: Any) -> JobEstimate:
        """`jobs.estimate`: what a job would give and take."""
        return self.jobs.estimate(spec, **fields)

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncFoundry(_Resources[AsyncTransport]):
    """The same client for programs that await: every verb returns an awaitable, every list an asynchronous iterator.

        async with AsyncFoundry() as foundry:
            data = await foundry.datasets.upload("domain.jsonl")
            async for job in foundry.jobs.list(status="running"):
                ...

    Files are read and brought home in threads. `blocking_transport` is what those send through.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, profile: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None, blocking_transport: httpx2.BaseTransport | None = None,
        timeout: float = 60.0, retries: int = RETRIES,
    ) -> None:  # fmt: skip
        address = find_service(url, key, profile)
        super().__init__(
            AsyncTransport(
                address.url, address.key, transport=transport, blocking=blocking_transport, timeout=timeout,
                retries=retries,
            )
        )  # fmt: skip

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
