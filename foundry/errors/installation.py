"""What whoever runs the installation can mend; then the same request works."""

from foundry.errors.base import FoundryError


class OperatorError(FoundryError):
    """The installation must be mended; then the same request works."""

    code = "operator_error"


class MissingExtra(OperatorError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed. Install it with: pip install 'foundry[{extra}]'")


class InvalidSettings(OperatorError):
    """A setting has a value that cannot be."""

    code = "invalid_settings"


class DatabaseUnavailable(OperatorError):
    """The database does not answer; what was asked can be asked again later."""

    code = "database_unavailable"


class ArtifactDamaged(OperatorError):
    """The bytes of a file are not those of its digest."""

    code = "artifact_damaged"


class NotTrusted(OperatorError):
    """The variant carries no signature, or that of another key."""

    code = "not_trusted"


class StorageFull(OperatorError):
    """The disk is full."""

    code = "storage_full"


class StorageUnavailable(OperatorError):
    """The artifact store does not answer; what was asked can be asked again later."""

    code = "storage_unavailable"


class OutOfMemory(OperatorError):
    """The machine or its accelerator has too little memory for this run."""

    code = "out_of_memory"


class Diverged(OperatorError):
    """The loss is no longer a number."""

    code = "diverged"


class ExportFailed(OperatorError):
    """A written file did not pass the check in its own runtime."""

    code = "export_failed"


class TooLossy(ExportFailed):
    """The format's numbers are too coarse for this model; one with more bits may do."""

    code = "too_lossy"


class ServeFailed(OperatorError):
    """The variant cannot be served on this machine as asked."""

    code = "serve_failed"
