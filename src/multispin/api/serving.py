"""An application on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from multispin.api.device_socket import DeviceSocket
from multispin.api.guard import Guard, is_loopback
from multispin.errors import BadInput
from multispin.wire.frames import MAX_FRAME_BYTES

SHUTDOWN_S = 2  # clients get so long to hear that it closes
SEND_BUFFER_BYTES = 256 * 1024  # of a connection, that the system holds for a slow reader


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raise BadInput if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
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


def address_of(listening: socket.socket) -> str:
    """HOST:PORT, as it stands in a URL."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers, which kill the process before others can clean up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """Lets the application cut off a client that does not read: a close would wait for it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


async def serve_app(app: ASGIApp, listening: socket.socket, main: Awaitable[object]) -> None:
    """Serve while ``main`` runs. Ends when it does (its error is raised), or at SIGINT, SIGTERM."""
    config = uvicorn.Config(
        Guard(app, on_loopback=is_loopback(listening.getsockname()[0])),
        log_config=None,
        access_log=False,
        http=_Connection,
        ws=DeviceSocket,
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
