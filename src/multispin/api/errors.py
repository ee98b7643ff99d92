"""What a client is told when something goes wrong: OpenAI's shape, a status, the field's name.

{"error": {"message": …, "type": …, "param": …, "code": …}}
"""

from __future__ import annotations

import logging
import math
import re

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from multispin.errors import BadInput, MultispinError

log = logging.getLogger("multispin.api")

STATUS = {
    "bad_input": 400,
    "context_overflow": 400,
    "draft_too_long": 400,
    "infeasible": 400,
    "unknown_target": 404,
    "overloaded": 429,
    "rate_limited": 429,
    "draining": 503,
    "loading": 503,
    "unreachable": 503,
    # A device that its server does not let in: nothing that its applications could cure.
    "forbidden": 503,
    "target_changed": 503,
    "unauthorized": 503,
}  # of what the server says; anything else is 500
# Clients of OpenAI's wait so long and try again, where nobody knows better.
RETRY_AFTER_S = {429: 1, 503: 2}
OPENAI_CODE = {"context_overflow": "context_length_exceeded"}
# The wire names the field in the message only, as BadInput writes it.
_FIELD = re.compile(r"([a-z_]+)(?:\[[^\]]*\])? = ")


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct):
    error: ErrorDetail


class ApiError(MultispinError):
    """An error with everything that its answer says."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message, code=code or "bad_input", retry_after_s=retry_after_s)
        self.status = status
        self.param = param

    def body(self) -> bytes:
        kind = "invalid_request_error"
        if self.status >= 429:
            kind = "rate_limit_error" if self.status == 429 else "server_error"
        detail = ErrorDetail(str(self), kind, self.param, OPENAI_CODE.get(self.code, self.code))
        return msgspec.json.encode(ErrorAnswer(detail))

    def response(self) -> Response:
        headers = {}
        if self.status in (408, 413):  # the rest of its body is not read
            headers["Connection"] = "close"
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="multispin"'
        if self.status in RETRY_AFTER_S:
            wait_s = math.ceil(self.retry_after_s) or RETRY_AFTER_S[self.status]
            headers["Retry-After"] = str(wait_s)
        return Response(self.body(), self.status, headers, "application/json")


def api_error(error: BaseException) -> ApiError:
    """What to tell of any error; one of our own bugs is logged and not described."""
    match error:
        case ApiError():
            return error
        case BaseExceptionGroup():
            return api_error(error.exceptions[0])
        case MultispinError():
            status = 400 if isinstance(error, BadInput) else STATUS.get(error.code, 500)
            message = str(error)
            named = _FIELD.match(message) if status == 400 else None
            return ApiError(
                status,
                message,
                code=error.code,
                param=named and named[1],
                retry_after_s=error.retry_after_s,
            )
        case _:
            log.error("an answer failed", exc_info=error)
            return ApiError(500, "an error of the server's own: its log has more", code="internal")


# --- what Starlette raises, in the same shape ----------------------------------------------------


async def told(request: Request, error: Exception) -> Response:
    return api_error(error).response()


async def told_of_route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    response = ApiError(error.status_code, message, code=code).response()
    response.headers.update(error.headers or {})
    return response
