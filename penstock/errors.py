"""Every error that Penstock reports: one tree, one envelope, the same classes at the client.

Knows nothing of HTTP libraries or Redis. An error travels as its `code`; `from_code` builds the same class again at
the other end of a wire.

    PenstockError
    |  code                   status  retry   OpenAI type             meaning
    +- InvalidRequest
    |  |  invalid_request        400    no    invalid_request_error   malformed, unknown field, out of range (`param`)
    |  +- UnsupportedParameter
    |  |  unsupported_parameter  400    no    invalid_request_error   the model's backend cannot honour it (`param`)
    |  +- ContextLengthExceeded
    |  |  context_length_exceeded 400   no    invalid_request_error   longer than the model's context
    |  +- SlowBody
    |  |  request_timeout        408    yes   invalid_request_error   the body did not arrive in time
    |  +- BodyTooLarge
    |  |  body_too_large         413    no    invalid_request_error   larger than the gateway accepts
    |  +- UnsupportedMediaType
    |  |  unsupported_media_type 415    no    invalid_request_error   not application/json, or compressed
    |  +- Misdirected
    |     misdirected_request    421    no    invalid_request_error   the gateway does not answer for this Host
    +- Unauthorized
    |     invalid_api_key        401    no    authentication_error    no key, or an unknown or revoked one
    +- Forbidden
    |  |  forbidden              403    no    permission_error        only an administrator's key may do this
    |  +- ModelNotAllowed
    |  |  model_not_allowed      403    no    permission_error        the key may not use this model
    |  +- OriginNotAllowed
    |     origin_not_allowed     403    no    permission_error        web pages of this Origin may not call the gateway
    +- NotFound
    |  |  not_found              404    no    not_found_error         no such route
    |  +- ModelNotFound
    |  |  model_not_found        404    no    not_found_error         no live worker serves it
    |  +- RequestNotFound
    |     request_not_found      404    no    not_found_error         unknown, another caller's, or expired
    +- MethodNotAllowed
    |     method_not_allowed     405    no    invalid_request_error   the route knows other methods
    +- IdempotencyConflict
    |     idempotency_conflict   409    no    invalid_request_error   same key, another body
    +- Overloaded
    |  |  overloaded             429    yes   rate_limit_error        too busy to take it now
    |  +- RateLimited
    |  |  rate_limited           429    yes   rate_limit_error        the caller's own limit
    |  +- QueueFull
    |  |  queue_full             429    yes   rate_limit_error        the queue, or this caller's share of it, is full
    |  +- StorageQuota
    |  |  storage_quota          429    yes   rate_limit_error        the caller's storage is full
    |  +- DeadlineUnreachable
    |     deadline_unreachable   429    yes   rate_limit_error        it would expire before it could start
    +- Cancelled
    |     cancelled              499    no    cancelled               by its client or an operator
    +- InternalError
    |  |  internal_error         500    no    server_error            a bug in Penstock
    |  +- RequestPoisoned
    |     request_poisoned       500    no    server_error            it took several workers down
    +- UnsupportedTask
    |     unsupported_task       501    no    invalid_request_error   the model's backend has no such task
    +- BackendError
    |  |  backend_error          502    no    server_error            the engine failed this request
    |  +- WorkerLost
    |     worker_lost            502    yes   server_error            its worker died; the backend cannot continue it
    +- Unavailable
    |  |  unavailable            503    yes   server_error            too many connections, or not just now
    |  +- NoWorkers
    |  |  no_workers             503    yes   server_error            no worker came in time
    |  +- StoreUnavailable
    |  |  store_unavailable      503    yes   server_error            Redis is away or full
    |  +- Draining
    |     draining               503    yes   server_error            this gateway is shutting down
    +- DeadlineExceeded
          deadline_exceeded      504    no    timeout_error           it did not end within its timeout_s
"""

from __future__ import annotations

from typing import ClassVar


class PenstockError(Exception):
    """The root. `param`: name of the field at fault. `retry_after_s`: seconds after which a retry makes sense.

    On a server `status` and `retryable` are the class' own. At the client they come from the answer, as `request_id`.
    """

    code: ClassVar[str] = "error"
    status: int = 500
    retryable: bool = False
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = {}
        self.request_id = ""

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The one body of every error, in OpenAI's form."""
        return {"error": {"message": self.message, "type": self.type, "code": self.code, "param": self.param}}


class InvalidRequest(PenstockError):
    code, status, type = "invalid_request", 400, "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class SlowBody(InvalidRequest):
    code, status, retryable = "request_timeout", 408, True


class BodyTooLarge(InvalidRequest):
    code, status = "body_too_large", 413


class UnsupportedMediaType(InvalidRequest):
    code, status = "unsupported_media_type", 415


class Misdirected(InvalidRequest):
    code, status = "misdirected_request", 421


class Unauthorized(PenstockError):
    code, status, type = "invalid_api_key", 401, "authentication_error"


class Forbidden(PenstockError):
    code, status, type = "forbidden", 403, "permission_error"


class ModelNotAllowed(Forbidden):
    code = "model_not_allowed"


class OriginNotAllowed(Forbidden):
    code = "origin_not_allowed"


class NotFound(PenstockError):
    code, status, type = "not_found", 404, "not_found_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class RequestNotFound(NotFound):
    code = "request_not_found"


class MethodNotAllowed(PenstockError):
    code, status, type = "method_not_allowed", 405, "invalid_request_error"


class IdempotencyConflict(PenstockError):
    code, status, type = "idempotency_conflict", 409, "invalid_request_error"


class Overloaded(PenstockError):
    code, status, retryable, type = "overloaded", 429, True, "rate_limit_error"


class RateLimited(Overloaded):
    code = "rate_limited"


class QueueFull(Overloaded):
    code = "queue_full"


class StorageQuota(Overloaded):
    code = "storage_quota"


class DeadlineUnreachable(Overloaded):
    code = "deadline_unreachable"


class Cancelled(PenstockError):
    code, status, type = "cancelled", 499, "cancelled"


class InternalError(PenstockError):
    code, status = "internal_error", 500


class RequestPoisoned(InternalError):
    code = "request_poisoned"


class UnsupportedTask(PenstockError):
    code, status, type = "unsupported_task", 501, "invalid_request_error"


class BackendError(PenstockError):
    code, status = "backend_error", 502


class WorkerLost(BackendError):
    code, retryable = "worker_lost", True


class Unavailable(PenstockError):
    code, status, retryable = "unavailable", 503, True


class NoWorkers(Unavailable):
    code = "no_workers"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class Draining(Unavailable):
    code = "draining"


class DeadlineExceeded(PenstockError):
    code, status, type = "deadline_exceeded", 504, "timeout_error"


class ConfigError(PenstockError):
    """A process refuses to start; never sent over HTTP."""

    code = "config_error"


def _tree(root: type[PenstockError]) -> dict[str, type[PenstockError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


CODES: dict[str, type[PenstockError]] = _tree(PenstockError)


def from_code(
    code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> PenstockError:
    """An error of the class with this `code`; for an unknown code (of a newer peer) a plain `PenstockError`."""
    return CODES.get(code, PenstockError)(message, param=param, retry_after_s=retry_after_s)
