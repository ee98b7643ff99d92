"""Who may talk to a local endpoint: no web page that a browser was led to by a foreign name.

A page of evil.example can resolve its own name to 127.0.0.1 (DNS rebinding) or post to
http://127.0.0.1 directly. The first shows in the header Host, the second in Origin.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from multispin.api.errors import ApiError
from multispin.net.address import is_loopback


class Guard:
    """Checks Host (where the app is served on loopback) and Origin of every request."""

    def __init__(self, app: ASGIApp, *, on_loopback: bool) -> None:
        self._app = app
        self._on_loopback = on_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(Headers(scope=scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._on_loopback and not is_loopback(_name(f"//{host}")):
            raise ApiError(
                403,
                f"Host: {host}: this endpoint answers to localhost and 127.0.0.1 only",
                code="wrong_host",
            )
        if origin is None:
            return
        name = _name(origin)
        if not (is_loopback(name) if self._on_loopback else name == _name(f"//{host}")):
            raise ApiError(
                403,
                f"Origin: {origin}: pages from elsewhere may not use this endpoint",
                code="wrong_origin",
            )


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
