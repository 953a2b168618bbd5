"""What whoever asked can mend: another request, another key, another moment."""

from collections.abc import Sequence

from foundry.errors.base import FieldProblem, FoundryError


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
