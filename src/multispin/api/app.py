"""The server's one port: HTTP, and WebSockets for devices."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Awaitable, Iterator
from dataclasses import asdict, dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from multispin.errors import BadInput, PeerError
from multispin.net.server import EdgeServer
from multispin.net.transport import TransportClosed
from multispin.net.websocket import DEVICE_PATH
from multispin.wire.frames import MAX_FRAME_BYTES, Error, encode

SHUTDOWN_S = 2  # devices get so long to hear that the server closes


class StarletteTransport:
    """The server's end of a WebSocket."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: closed from this side
            raise TransportClosed from None

    async def receive(self) -> bytes:
        try:
            return await self._socket.receive_bytes()
        except (WebSocketDisconnect, RuntimeError):
            raise TransportClosed from None
        except KeyError:
            raise PeerError("a text message: frames are binary", code="bad_frame") from None

    async def close(self) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.close()


@dataclass
class ServerState:
    """What the routes look at. There is no server while its model loads."""

    server: EdgeServer | None = None

    @property
    def ready(self) -> bool:
        return self.server is not None and self.server.engine.ready


def create_app(state: ServerState) -> Starlette:
    """Routes of the server; docs/protocol.md describes the WebSocket."""

    async def health(request: Request) -> JSONResponse:
        if state.server is not None and state.ready:
            return JSONResponse({"status": "ok", "target": state.server.core.info.target})
        return JSONResponse({"status": "the model is being loaded"}, status_code=503)

    async def cell(request: Request) -> JSONResponse:
        """The state of the cell. ``clock_s`` counts from anywhere: differences of two answers are
        to be compared with those of the counters."""
        if state.server is None:
            return JSONResponse({"status": "the model is being loaded"}, status_code=503)
        core = state.server.core
        return JSONResponse(
            {
                "target": core.info.target,
                "mode": core.limits.batch.mode,
                "policy": core.limits.control.policy,
                "num_sessions": core.num_sessions,
                "clock_s": time.monotonic(),
                "counters": asdict(core.counters),
            }
        )

    async def device(websocket: WebSocket) -> None:
        await websocket.accept()
        transport = StarletteTransport(websocket)
        if state.server is not None:
            await state.server.serve(transport)
            return
        error = Error(None, "loading", "the server is loading its model: try again in a moment")
        with contextlib.suppress(TransportClosed):
            await transport.send(encode(error))
        await transport.close()

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/api/cell", cell),
            WebSocketRoute(DEVICE_PATH, device),
        ]
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raise BadInput if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else "not a port"
        raise BadInput(
            "--port",
            f"{host}:{port}",
            f"cannot listen there ({reason}): stop what does, or take --port 0 for any free one",
        ) from None
    return listening


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers, which kill the process before others can clean up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_app(app: Starlette, listening: socket.socket, main: Awaitable[None]) -> None:
    """Serve while ``main`` runs. Ends when it does (its error is raised), or at SIGINT, SIGTERM."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    http = _Http(config)
    serving = asyncio.create_task(http.serve(sockets=[listening]))
    running = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, http.handle_exit, number, None)
    await asyncio.wait({serving, running}, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    http.should_exit = True
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        await serving
