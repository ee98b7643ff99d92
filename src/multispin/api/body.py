"""From a request's bytes to its struct, or to an error that names the field."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from multispin.api.errors import ApiError

T = TypeVar("T", bound=msgspec.Struct)

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_DROPPED_BYTES = 16 * MAX_BODY_BYTES  # read in vain, so that the client gets to see its answer
BODY_S = 30.0  # a body that takes longer is given up

# In a message that may quote a field's name, megabytes of anything: nothing is looked at twice.
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_NAME = re.compile(r"`(.*?)`")


async def read_body(receive: Receive, most_bytes: int = MAX_BODY_BYTES) -> bytes:
    """All of it. Raise ApiError where it is too large or too slow."""
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in _parts(receive):
                num_bytes += len(part)
                if num_bytes > MAX_DROPPED_BYTES:
                    break
                if num_bytes <= most_bytes:
                    parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {BODY_S:g} s", code="timeout") from None
    if num_bytes > most_bytes:
        message = f"the body has more than {most_bytes} bytes: shorten the prompt"
        raise ApiError(413, message, code="request_too_large")
    return b"".join(parts)


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        more = message.get("more_body", False)


def decode(data: bytes, kind: type[T]) -> T:
    """The struct. Raise ApiError with the path of the field that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"the body is not JSON that can be read: {error}"
        raise ApiError(400, message, code="invalid_json") from None


def _refusal(message: str) -> ApiError:
    """``Expected `int`, got `str` - at `$.seed``` becomes an error with param seed."""
    found = _PATH.search(message)
    path = found[1].replace("[...]", "") if found else ""
    what = message[: found.start()] if found else message
    if "unknown field" in what or "missing required field" in what:
        named = _NAME.search(what)
        assert named is not None
        path = f"{path}.{named[1]}".lstrip(".")
        if "unknown" in what:
            return ApiError(
                400,
                f"{path}: is not supported here: leave it out",
                code="unsupported_parameter",
                param=path,
            )
        return ApiError(400, f"{path}: is missing", code="missing_parameter", param=path)
    message = f"{path or 'body'}: {what}"
    return ApiError(400, message, code="invalid_value", param=path or None)
