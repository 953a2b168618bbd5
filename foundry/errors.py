"""Every exception, drawn once.

    FoundryError
    ├── UserError                 the request cannot be carried out as given; never retried
    │   ├── InvalidSpec           a field is missing, unknown or out of range
    │   ├── UnknownTarget
    │   ├── UnknownFormat
    │   ├── UnknownSuite
    │   ├── UnknownTask           no benchmark has this name; names the nearest
    │   ├── BudgetUnreachable     no shape of this teacher is small enough
    │   ├── TeacherNotFound
    │   ├── UnsafeCheckpoint      pickled weights, code, links: refused unread
    │   ├── DamagedCheckpoint     headers, config and weights disagree
    │   ├── UnsupportedFamily
    │   ├── InvalidData           empty, malformed or too short; names the line
    │   ├── SignalMismatch        a saved signal of another teacher, tokenizer or text
    │   └── UnsafeAddress         a webhook's address is not a public https one
    ├── StateConflict             the thing exists but is not in a state that allows this
    │   ├── IllegalTransition
    │   ├── LeaseLost             another attempt owns the job now; stop without writing
    │   ├── NameTaken             another object of the project has this name
    │   ├── InUse                 something else still needs the object
    │   ├── UploadConflict        parts are missing, or the upload is over
    │   └── IdempotencyConflict   one key, two different requests
    ├── NotFound                  no such object in this project
    ├── Unauthorized              the key is missing, wrong, expired or revoked
    ├── Forbidden                 the key is good, but its scopes do not reach this far
    ├── QuotaExceeded             the project has used up what its operator allows
    ├── RateLimited               too many requests in a minute; the same request works a moment later
    ├── OperatorError             the installation must be mended, then the same request works
    │   ├── MissingExtra          an optional dependency is not installed
    │   ├── InvalidSettings       a FOUNDRY_* variable has a value that cannot be
    │   ├── DatabaseUnavailable   unreachable, busy too long, or not migrated
    │   ├── ArtifactDamaged       stored or produced bytes are not those of their digest
    │   ├── NotTrusted            no signature, or not the expected key's
    │   ├── StorageFull
    │   ├── StorageUnavailable    the bucket of the artifacts does not answer or refuses us
    │   ├── OutOfMemory
    │   ├── Diverged              the loss is no longer a number
    │   ├── ExportFailed          a written file did not pass the check in its own runtime
    │   │   └── TooLossy          it computes the model, but its numbers are too coarse for it
    │   └── ServeFailed           a variant cannot be served here: port, runtime or format
    └── ServiceError              what the SDK raises
        ├── ServiceUnreachable
        ├── RequestFailed         an answer other than 2xx; carries the problem document (client/refusals.py joins it
        │                         with the domain's own error: a 404 is also a NotFound)
        ├── JobFailed             `wait()` ended on failed or cancelled
        ├── WaitExpired           `wait(timeout=...)` ran out; the job goes on
        └── DownloadCorrupt       bytes do not match their digest

A message names the value that was wrong and the way out. `pointer` is a JSON pointer (RFC 6901) into the request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """One thing wrong with one field of a request."""

    pointer: str
    code: str
    detail: str


class FoundryError(Exception):
    """Something went wrong in Foundry."""

    code: ClassVar[str] = "foundry_error"

    def __init__(self, message: str | None = None, *, pointer: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.pointer = pointer
        super().__init__(self.message)

    @property
    def problems(self) -> Sequence[FieldProblem]:
        """The fields at fault; empty when no single field is."""
        if not self.pointer:
            return ()
        return (FieldProblem(pointer=self.pointer, code=self.code, detail=self.message),)


class UserError(FoundryError):
    """The request cannot be carried out as given."""

    code = "user_error"


class InvalidSpec(UserError):
    """A field is missing, unknown or out of range."""

    code = "invalid_spec"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        self._problems = tuple(problems)
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.detail}" for p in self._problems))

    @property
    def problems(self) -> Sequence[FieldProblem]:
        return self._problems


class UnknownTarget(UserError):
    """No device profile has this name."""

    code = "unknown_target"


class UnknownFormat(UserError):
    """No exporter writes this format."""

    code = "unknown_format"


class UnknownSuite(UserError):
    """No suite of benchmarks has this name."""

    code = "unknown_suite"


class UnknownTask(UserError):
    """No benchmark has this name."""

    code = "unknown_task"


class BudgetUnreachable(UserError):
    """No shape of this teacher is small enough for the budget."""

    code = "budget_unreachable"

    def __init__(self, message: str, *, pointer: str = "", smallest_bytes: int, smallest_params: int) -> None:
        super().__init__(message, pointer=pointer)
        self.smallest_bytes = smallest_bytes
        self.smallest_params = smallest_params


class TeacherNotFound(UserError):
    """The teacher is neither a folder that may be read nor a model on the hub."""

    code = "teacher_not_found"


class UnsafeCheckpoint(UserError):
    """The checkpoint holds pickled weights, code or links, which are refused unread."""

    code = "unsafe_checkpoint"


class DamagedCheckpoint(UserError):
    """Headers, config and weights of the checkpoint disagree."""

    code = "damaged_checkpoint"


class UnsupportedFamily(UserError):
    """No family table describes this model."""

    code = "unsupported_family"


class SignalMismatch(UserError):
    """The saved signal was made from another teacher, tokenizer or text."""

    code = "signal_mismatch"


class InvalidData(UserError):
    """The data is empty, malformed or too short."""

    code = "invalid_data"

    def __init__(self, message: str, *, pointer: str = "/data", line: int | None = None) -> None:
        super().__init__(f"line {line}: {message}" if line is not None else message, pointer=pointer)
        self.line = line


class UnsafeAddress(UserError):
    """The address is not a public https address."""

    code = "unsafe_address"


class StateConflict(FoundryError):
    """The object is not in a state that allows this."""

    code = "state_conflict"


class IllegalTransition(StateConflict):
    """The job's status does not allow this."""

    code = "illegal_transition"


class LeaseLost(StateConflict):
    """Another attempt owns the job now."""

    code = "lease_lost"


class NameTaken(StateConflict):
    """Another object of the project has this name."""

    code = "name_taken"


class InUse(StateConflict):
    """Something else still needs the object."""

    code = "in_use"


class UploadConflict(StateConflict):
    """Parts of the upload are missing, or it is over."""

    code = "upload_conflict"


class IdempotencyConflict(StateConflict):
    """This idempotency key was used with another request."""

    code = "idempotency_conflict"


class NotFound(FoundryError):
    """There is no such object in this project."""

    code = "not_found"


class Unauthorized(FoundryError):
    """The API key is missing, wrong, expired or revoked."""

    code = "unauthorized"


class Forbidden(FoundryError):
    """The API key may not do this."""

    code = "forbidden"


class QuotaExceeded(FoundryError):
    """The project has used up what its operator allows."""

    code = "quota_exceeded"


class RateLimited(FoundryError):
    """Too many requests in a short time."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


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


class ServiceError(FoundryError):
    """The service did not do what the SDK asked."""

    code = "service_error"


class ServiceUnreachable(ServiceError):
    """The service does not answer."""

    code = "service_unreachable"


class RequestFailed(ServiceError):
    """The service refused the request."""

    code = "request_failed"

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.request_id: str | None = problem.get("request_id")
        self.retryable = bool(problem.get("retryable", False))
        self._problems = tuple(
            FieldProblem(pointer=e.get("pointer", ""), code=e.get("code", ""), detail=e.get("detail", ""))
            for e in problem.get("errors", ())
        )
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))

    @property
    def problems(self) -> Sequence[FieldProblem]:
        return self._problems


class JobFailed(ServiceError):
    """The job ended without a variant."""

    code = "job_failed"

    def __init__(self, message: str, *, job_id: str, status: str, reason_code: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.status = status
        self.reason_code = reason_code


class WaitExpired(ServiceError):
    """The job had not ended when the wait was over; it goes on."""

    code = "wait_expired"


class DownloadCorrupt(ServiceError):
    """The bytes do not match their digest."""

    code = "download_corrupt"
