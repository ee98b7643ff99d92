"""The application of a directory: one port for devices, HTTP clients, dashboard and metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from multispin.api.app import endpoint_app
from multispin.api.auth import TENANT
from multispin.api.dashboard import page_routes
from multispin.api.device_socket import EXTENSION
from multispin.api.directory_cell import cell_routes
from multispin.api.directory_metrics import directory_metrics_route
from multispin.api.directory_texts import Proxy
from multispin.core.tenant import LOCAL
from multispin.net.address import Address
from multispin.net.directory import Directory
from multispin.net.directory_server import DirectoryServer
from multispin.net.watches import Watches
from multispin.net.websocket import DEVICE_PATH


class DirectoryState:
    """What the routes look at. ``file`` lists the replicas, ``address`` makes one of what is
    listed. Raise BadInput if the list cannot be used."""

    def __init__(self, file: Path, address: Callable[[str], Address]) -> None:
        self.directory = Directory()
        self.watches = Watches(self.directory, file, address)
        self.server = DirectoryServer(self.directory)
        self.proxy = Proxy(self.directory, self.watches.address)

    async def drain(self, seconds: float) -> None:
        """Devices find their next replica by another directory; HTTP clients' texts may end."""
        self.server.send_all_off()
        await self.proxy.drain(seconds)


def create_directory_app(state: DirectoryState) -> Starlette:
    async def health(request: Request) -> JSONResponse:
        status = "draining" if state.server.is_draining else "no replica serves"
        is_well = state.directory.serves and not state.server.is_draining
        about = {
            "status": "ok" if is_well else status,
            "targets": {t.listed.name: t.serves for t in state.directory.targets},
        }
        return JSONResponse(about, status_code=200 if is_well else 503)

    async def device(websocket: WebSocket) -> None:
        await websocket.accept()
        socket = websocket.scope["extensions"][EXTENSION]
        await state.server.serve(socket, websocket.scope.get(TENANT, LOCAL))

    routes: list[BaseRoute] = [Route("/health", health), *page_routes("cluster.html")]
    routes += cell_routes(state.directory, state.watches)
    routes += [directory_metrics_route(state.server, state.watches)]
    routes += [WebSocketRoute(DEVICE_PATH, device)]
    return endpoint_app(routes, state.proxy.texts)
