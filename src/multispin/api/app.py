"""The applications: a server's one port, and a device agent's."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
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
from multispin.api.metrics import TelemetryCollector, metrics_route
from multispin.api.openapi import document
from multispin.api.replica_socket import ReplicaSocket
from multispin.api.texts import DeviceTexts, FindTexts, ServerTexts
from multispin.core.tenant import LOCAL
from multispin.errors import MultispinError
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.net.websocket import DEVICE_PATH
from multispin.wire.replica import WATCH_PATH, Condition

LOADING = "the model is being loaded"


@dataclass
class ServerState:
    """What the routes look at. There is no server while its model loads."""

    server: EdgeServer | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    logs: Logs = field(default_factory=Logs)
    name: str = ""  # by which directories and the supervisor know it
    budgets: dict[str, float] = field(default_factory=dict)  # said before there was a server

    def begin(self, server: EdgeServer) -> None:
        """The model is loaded."""
        server.set_budgets(self.budgets)
        self.server = server

    @property
    def condition(self) -> Condition:
        if self.server is None:
            return "loading"
        if self.server.core.draining:
            return "draining"
        return "ok" if self.server.engine.ready else "engine_lost"

    @property
    def status(self) -> str:
        """For people."""
        return LOADING if self.condition in ("loading", "engine_lost") else self.condition

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

    def cell_document() -> bytes:
        if state.server is None:
            return msgspec.json.encode({"status": LOADING})
        return msgspec.json.encode(cell_state(state.server, state.telemetry))

    async def cell(request: Request) -> Response:
        status = 503 if state.server is None else 200
        return Response(cell_document(), status, media_type="application/json")

    registry = CollectorRegistry()
    registry.register(TelemetryCollector(state.telemetry))
    replica = ReplicaSocket(
        state, {"cell": cell_document, "metrics": functools.partial(generate_latest, registry)}
    )

    async def device(websocket: WebSocket) -> None:
        if state.server is None:
            state.telemetry.refused("loading")
        await serve_device(websocket, state.server, websocket.scope.get(TENANT, LOCAL))

    routes: list[BaseRoute] = [Route("/health", health), Route("/api/cell", cell)]
    routes += dashboard_routes(state)
    routes += [metrics_route(state.telemetry), WebSocketRoute(DEVICE_PATH, device)]
    routes += [WebSocketRoute(WATCH_PATH, replica.watch)]
    return endpoint_app(routes, lambda scope: [state.texts.bound_to(scope.get(TENANT, LOCAL))])


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

    return endpoint_app([Route("/health", health), metrics_route(telemetry)], lambda scope: [texts])


def endpoint_app(routes: list[BaseRoute], find_texts: FindTexts) -> Starlette:
    """These routes, and those of an endpoint."""

    async def openapi(request: Request) -> JSONResponse:
        try:
            targets = [texts.target for texts in find_texts(request.scope)]
        except ApiError:  # it is not known yet
            targets = []
        return JSONResponse(document(targets))

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
