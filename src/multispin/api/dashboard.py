"""`GET /`: the dashboard, one static page, and the events that it lives on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from multispin.api.dashboard_feed import Feed
from multispin.api.errors import ApiError
from multispin.api.login import (
    DASHBOARD_PATH,
    LOGIN_PATH,
    LOGOUT_PATH,
    cookie_token,
    log_in,
    log_out,
)
from multispin.api.sse import EventStream, while_connected

if TYPE_CHECKING:
    from multispin.api.app import ServerState

MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "login.html": "text/html; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "cluster.html": "text/html; charset=utf-8",
    "cluster.css": "text/css; charset=utf-8",
    "cluster.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "uPlot.LICENSE": "text/plain; charset=utf-8",
}
HEADERS = {
    # Nothing but these files, from here: no inline script, no other page around this one.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none, a form's origin would be null
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # ask whether it has changed
}


# Hidden in the pages, and shown: who has signed in can sign out, and why somebody has to.
SIGN_OUT = b'action="/logout" hidden', b'action="/logout"'
WHY = b'role="alert" hidden', b'role="alert"'


@dataclass(frozen=True)
class StaticFile:
    data: bytes
    tag: str


@cache
def static_file(name: str) -> StaticFile:
    data = (resources.files("multispin.api") / "static" / name).read_bytes()
    return StaticFile(data, f'"{hashlib.blake2b(data, digest_size=8).hexdigest()}"')


def dashboard_routes(state: ServerState) -> list[BaseRoute]:
    events = Route("/api/events", _Events(Feed(state)), methods=["GET"])
    return [*page_routes("index.html"), events]


def page_routes(page: str) -> list[BaseRoute]:
    """The page, what it needs, and the way in and out."""

    async def show(request: Request) -> Response:
        if cookie_token(request.scope) is None:
            return _answer(page, request)
        return _changed(page, *SIGN_OUT)

    return [
        Route(DASHBOARD_PATH, show),
        Route(LOGIN_PATH, _form),
        Route(LOGIN_PATH, log_in, methods=["POST"]),
        Route(LOGOUT_PATH, log_out, methods=["POST"]),
        Route("/static/{name}", _static),
    ]


async def _form(request: Request) -> Response:
    if "refused" not in request.query_params:
        return _answer("login.html", request)
    return _changed("login.html", *WHY)


def _changed(name: str, old: bytes, new: bytes) -> Response:
    page = static_file(name).data.replace(old, new)
    return Response(page, headers=HEADERS, media_type=MEDIA_TYPES[name])


async def _static(request: Request) -> Response:
    name: str = request.path_params["name"]
    if name not in MEDIA_TYPES:
        raise ApiError(404, f"{request.url.path}: there is no such file", code="not_found")
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    file = static_file(name)
    headers = {**HEADERS, "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=MEDIA_TYPES[name])


class _Events:
    """An ASGI application: events for one viewer."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = EventStream(scope, send)
        try:
            await while_connected(receive, self._feed.send_to(stream))
        except ApiError as error:
            await error.response()(scope, receive, send)
