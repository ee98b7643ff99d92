"""Access tokens on the server's port: who asks is known before anything is read of what is asked.

A token travels in the header `Authorization: Bearer TOKEN` of requests and of the WebSocket's
handshake. Browsers that signed in (see login.py) have it in a cookie, which is good for looking at
things only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from multispin.api.errors import ApiError
from multispin.api.login import LOGIN_PATH, LOGOUT_PATH, cookie_token, to_login
from multispin.core.tenant import TOKEN_PREFIX, Scope
from multispin.net.token_file import TokenEntry
from multispin.net.tokens import Tokens
from multispin.wire.replica import WATCH_PATH

log = logging.getLogger("multispin.api")

# Of the ASGI scope: whose token it is, and an asyncio.Timeout that expires when the token is void.
TENANT, LIFE = "multispin.tenant", "multispin.life"
OPEN = ("/health", LOGIN_PATH, LOGOUT_PATH)
STATIC = "/static/"  # the same for everybody
GENERATE = ("/v1/", "/openapi.json")  # beginnings; whatever is neither is for who operates
STEER = WATCH_PATH  # the beginning of what is, and is more than to look at things
MAX_TOKEN_BYTES = 1024


class Authentication:
    """Lets in who has a token for the path, for as long as the token is valid."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            entry = self._entry(scope)
        except ApiError as error:
            _tell(scope, error)
            answer = to_login(scope) or error.response()
            await answer(scope, receive, send)
            return
        scope[TENANT] = entry.tenant
        try:
            async with self._tokens.while_valid(entry) as scope[LIFE]:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not scope[LIFE].expired():
                raise
            if scope["type"] == "http":  # in the midst of an answer: it must not look complete
                scope["state"]["transport"].abort()

    def _entry(self, scope: AsgiScope) -> TokenEntry:
        """Raise ApiError, 401 or 403, if there is no token, or not one for this."""
        if TOKEN_PREFIX.encode() in scope["query_string"]:
            raise _unauthorized("tokens do not travel in URLs, which are logged: revoke this one")
        path: str = scope["path"]
        steers = path.startswith(STEER)
        needed: Scope = "generate" if path.startswith(GENERATE) and not steers else "operate"
        signed_in = cookie_token(scope) if needed == "operate" and not steers else None
        entry = self._tokens.find(signed_in or _token(scope["headers"]))
        if entry is None:
            raise _unauthorized("this access token is not known, or no longer valid")
        if needed not in entry.scopes:
            raise ApiError(403, f"this access token lacks the scope {needed}", code="forbidden")
        return entry


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith(STATIC)


def ending(scope: AsgiScope) -> ApiError:
    """Why an answer is given up: its token, or else the whole server."""
    if LIFE in scope and scope[LIFE].expired():
        return _unauthorized("this access token is no longer valid")
    return ApiError(503, "this endpoint is being stopped", code="unreachable")


def _token(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Raise ApiError if there is none, or more than one."""
    values = [value for name, value in headers if name.lower() == b"authorization"]
    scheme, _, credentials = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    if scheme.lower() == b"bearer" and len(credentials) <= MAX_TOKEN_BYTES:
        return credentials.strip()
    raise _unauthorized("no access token: --token-file, or the header Authorization: Bearer TOKEN")


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="unauthorized")


def _tell(scope: AsgiScope, error: ApiError) -> None:
    client = (scope.get("client") or ("",))[0]
    log.warning("not_let_in", extra={"fields": {"code": error.code, "client": client}})
