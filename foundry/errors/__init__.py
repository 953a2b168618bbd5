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

from foundry.errors.base import FieldProblem as FieldProblem
from foundry.errors.base import FoundryError as FoundryError
from foundry.errors.installation import ArtifactDamaged as ArtifactDamaged
from foundry.errors.installation import DatabaseUnavailable as DatabaseUnavailable
from foundry.errors.installation import Diverged as Diverged
from foundry.errors.installation import ExportFailed as ExportFailed
from foundry.errors.installation import InvalidSettings as InvalidSettings
from foundry.errors.installation import MissingExtra as MissingExtra
from foundry.errors.installation import NotTrusted as NotTrusted
from foundry.errors.installation import OperatorError as OperatorError
from foundry.errors.installation import OutOfMemory as OutOfMemory
from foundry.errors.installation import ServeFailed as ServeFailed
from foundry.errors.installation import StorageFull as StorageFull
from foundry.errors.installation import StorageUnavailable as StorageUnavailable
from foundry.errors.installation import TooLossy as TooLossy
from foundry.errors.requests import BudgetUnreachable as BudgetUnreachable
from foundry.errors.requests import DamagedCheckpoint as DamagedCheckpoint
from foundry.errors.requests import Forbidden as Forbidden
from foundry.errors.requests import IdempotencyConflict as IdempotencyConflict
from foundry.errors.requests import IllegalTransition as IllegalTransition
from foundry.errors.requests import InUse as InUse
from foundry.errors.requests import InvalidData as InvalidData
from foundry.errors.requests import InvalidSpec as InvalidSpec
from foundry.errors.requests import LeaseLost as LeaseLost
from foundry.errors.requests import NameTaken as NameTaken
from foundry.errors.requests import NotFound as NotFound
from foundry.errors.requests import QuotaExceeded as QuotaExceeded
from foundry.errors.requests import RateLimited as RateLimited
from foundry.errors.requests import SignalMismatch as SignalMismatch
from foundry.errors.requests import StateConflict as StateConflict
from foundry.errors.requests import TeacherNotFound as TeacherNotFound
from foundry.errors.requests import Unauthorized as Unauthorized
from foundry.errors.requests import UnknownFormat as UnknownFormat
from foundry.errors.requests import UnknownSuite as UnknownSuite
from foundry.errors.requests import UnknownTarget as UnknownTarget
from foundry.errors.requests import UnknownTask as UnknownTask
from foundry.errors.requests import UnsafeAddress as UnsafeAddress
from foundry.errors.requests import UnsafeCheckpoint as UnsafeCheckpoint
from foundry.errors.requests import UnsupportedFamily as UnsupportedFamily
from foundry.errors.requests import UploadConflict as UploadConflict
from foundry.errors.requests import UserError as UserError
from foundry.errors.service import DownloadCorrupt as DownloadCorrupt
from foundry.errors.service import JobFailed as JobFailed
from foundry.errors.service import RequestFailed as RequestFailed
from foundry.errors.service import ServiceError as ServiceError
from foundry.errors.service import ServiceUnreachable as ServiceUnreachable
from foundry.errors.service import WaitExpired as WaitExpired
