"""What the SDK raises about a service."""

from collections.abc import Sequence
from typing import Any

from foundry.errors.base import FieldProblem, FoundryError


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
