"""The applications: a server's one port, and a device agent's."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from multispin.api.auth import TENANT
from multispin.api.capabilities import model_routes
from multispin.api.cell_state import cell_state
from multispin.api.completions import Endpoint
from multispin.api.dashboard import dashboard_routes
from multispin.api.dashboard_feed import Logs
from multispin.api.device_socket import serve_device
from multispin.api.dialects import Chat, Text
from multispin.api.errors import ApiError, told, told_of_route
from multispin.api.metrics import metrics_route
from multispin.api.openapi import document
from multispin.api.texts import DeviceTexts, FindTexts, ServerTexts
from multispin.core.tenant import LOCAL
from multispin.errors import MultispinError
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.net.websocket import DEVICE_PATH

LOADING = "the model is being loaded"


@dataclass
class ServerState:
    """What the routes look at. There is no server while its model loads."""

    server: EdgeServer | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    logs: Logs = field(default_factory=Logs)

    @property
    def status(self) -> str:
        if self.server is None or not self.server.engine.ready:
            return LOADING
        return "draining" if self.server.core.draining else "ok"

    @cached_property
    def texts(self) -> ServerTexts:
        """Raise ApiError while there is no server."""
        if self.server is None:
            raise ApiError(503, f"{LOADING}: try again in a moment", code="loading")
        return ServerTexts(self.server)


def create_app(state: ServerState) -> Starlette:
    """Routes of the server."""

    async def health(request: Request) -> JSONResponse:
        if state.server is not None and state.status == "ok":
            return JSONResponse({"status": "ok", "target": state.server.core.info.target})
        return JSONResponse({"status": state.status}, status_code=503)

    async def cell(request: Request) -> Response:
        if state.server is None:
            return JSONResponse({"status": LOADING}, status_code=503)
        found = msgspec.json.encode(cell_state(state.server, state.telemetry))
        return Response(found, media_type="application/json")

    async def device(websocket: WebSocket) -> None:
        if state.server is None:
            state.telemetry.refused("loading")
        await serve_device(websocket, state.server, websocket.scope.get(TENANT, LOCAL))

    routes: list[BaseRoute] = [Route("/health", health), Route("/api/cell", cell)]
    routes += dashboard_routes(state)
    routes += [metrics_route(state.telemetry), WebSocketRoute(DEVICE_PATH, device)]
    return _app(routes, lambda scope: state.texts.bound_to(scope.get(TENANT, LOCAL)))


def create_device_app(texts: DeviceTexts, telemetry: Telemetry) -> Starlette:
    """Routes of a device agent."""

    async def health(request: Request) -> JSONResponse:
        about = {
            "status": "ok" if texts.is_up else f"the link to the server is down: {texts.trouble}",
            "target": texts.target,
            "drafter": texts.drafter,
            "acceptance_rule": texts.rule,
            "link": "up" if texts.is_up else "down",
            "offline": texts.offline,
        }
        return JSONResponse(about, status_code=200 if texts.is_up else 503)

    return _app([Route("/health", health), metrics_route(telemetry)], lambda scope: texts)


def _app(routes: list[BaseRoute], find_texts: FindTexts) -> Starlette:
    """These routes, and those that both have."""

    async def openapi(request: Request) -> JSONResponse:
        try:
            return JSONResponse(document(find_texts(request.scope).target))
        except ApiError:  # it is not known yet
            return JSONResponse(document(None))

    dialects = (Chat(), Text())
    posts = [Route(d.path, Endpoint(find_texts, d), methods=["POST"]) for d in dialects]
    return Starlette(
        routes=[*routes, *posts, *model_routes(find_texts), Route("/openapi.json", openapi)],
        exception_handlers={
            HTTPException: told_of_route,
            MultispinError: told,
            Exception: told,
        },
    )
