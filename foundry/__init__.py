"""Foundry prunes, distils and exports language models to the size of a device.

    from foundry import Foundry
    job = Foundry().jobs.create(teacher="./my-teacher", data="ds_...", targets=["smartphone"])

What stands here is the shop window; inside the house, import from the module that defines a thing. Names are loaded
when they are first asked for, so that `import foundry` costs next to nothing and never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundry import errors as errors
    from foundry.client.client import AsyncFoundry as AsyncFoundry
    from foundry.client.client import Foundry as Foundry
    from foundry.errors import FoundryError as FoundryError
    from foundry.spec.job import CustomTarget as CustomTarget
    from foundry.spec.job import JobSpec as JobSpec
    from foundry.spec.lifecycle import JobEvent as JobEvent
    from foundry.spec.lifecycle import Status as Status
    from foundry.spec.resources import Dataset as Dataset
    from foundry.spec.resources import Job as Job
    from foundry.spec.resources import Target as Target
    from foundry.spec.resources import Variant as Variant
    from foundry.spec.variant import VariantManifest as VariantManifest

_DEFINED_IN = {
    "AsyncFoundry": "foundry.client.client",
    "CustomTarget": "foundry.spec.job",
    "Dataset": "foundry.spec.resources",
    "Foundry": "foundry.client.client",
    "FoundryError": "foundry.errors",
    "Job": "foundry.spec.resources",
    "JobEvent": "foundry.spec.lifecycle",
    "JobSpec": "foundry.spec.job",
    "Status": "foundry.spec.lifecycle",
    "Target": "foundry.spec.resources",
    "Variant": "foundry.spec.resources",
    "VariantManifest": "foundry.spec.variant",
}

__all__ = [*_DEFINED_IN, "__version__", "errors"]


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        return getattr(import_module(_DEFINED_IN[name]), name)
    if name == "errors":
        return import_module("foundry.errors")
    if name == "__version__":
        from importlib.metadata import version  # late: it costs a third of the whole import

        return version("foundry")
    raise AttributeError(f"module 'foundry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
