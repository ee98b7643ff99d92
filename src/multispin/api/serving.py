"""An application on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from multispin.api.auth import Authentication
from multispin.api.connection import HEAD_S, HttpConnection, Refused, counting
from multispin.api.device_socket import DeviceSocket
from multispin.api.guard import Guard
from multispin.errors import BadInput
from multispin.net.address import is_loopback
from multispin.net.tokens import Tokens
from multispin.wire.frames import MAX_FRAME_BYTES

SHUTDOWN_S = 2  # clients get so long to hear that it closes
SEND_BUFFER_BYTES = 256 * 1024  # of a connection, that the system holds for a slow reader


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raise BadInput if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio sends at once (TCP_NODELAY), and not when the last was read.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OverflowError):
            raise BadInput("--port", port, "must lie between 0 and 65535") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise BadInput("--host", host, "is no address of this machine") from None
        raise BadInput(
            "--port",
            f"{host}:{port}",
            f"cannot listen there ({error.strerror}): "
            "stop what does, or take --port 0 for any free one",
        ) from None
    return listening


def address_of(listening: socket.socket, tls: ssl.SSLContext | None = None) -> str:
    """HOST:PORT, as it stands in a URL; over TLS, the URL."""
    host, port = listening.getsockname()[:2]
    scheme = "https://" if tls else ""
    return f"{scheme}[{host}]:{port}" if ":" in host else f"{scheme}{host}:{port}"


@dataclass(frozen=True)
class Protection:
    """What a port asks of whoever connects: nothing, unless it is said."""

    tls: ssl.SSLContext | None = None
    tokens: Tokens | None = None


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers, which kill the process before others can clean up, and
    with a limit for TLS handshakes, which may take a minute in its own."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        for listening in sockets or []:
            server = await asyncio.get_running_loop().create_server(
                self._connection,
                sock=listening,
                backlog=self.config.backlog,
                ssl=self._tls,
                ssl_handshake_timeout=HEAD_S if self._tls else None,
            )
            self.servers.append(server)

    def _connection(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        connection: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return connection


class _Stop:
    """What a signal does."""

    def __init__(self, http: _Http, drain: Callable[[], Awaitable[object]] | None) -> None:
        self._http = http
        self._drain = drain
        self._draining: asyncio.Future[object] | None = None

    def __call__(self) -> None:
        if self._drain is None:
            self._http.should_exit = True
        elif self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
            self._draining.add_done_callback(self._end)
        else:
            self._draining.cancel()

    def _end(self, drained: asyncio.Future[object]) -> None:
        self._http.should_exit = True


async def serve_app(
    app: ASGIApp,
    listening: socket.socket,
    main: Awaitable[object],
    drain: Callable[[], Awaitable[object]] | None = None,
    refused: Refused = lambda code: None,
    protection: Protection = Protection(),
) -> None:
    """Serve while ``main`` runs. Ends when it does (its error is raised), or at SIGINT, SIGTERM:
    the first lets ``drain`` end before, the second does not."""
    tls, tokens = protection.tls, protection.tokens
    if tokens is not None:
        app = Authentication(app, tokens)
    guarded = Guard(app, on_loopback=is_loopback(listening.getsockname()[0]))
    config = uvicorn.Config(
        counting(guarded, refused),
        log_config=None,
        access_log=False,
        proxy_headers=False,  # who asks is who connects, whatever a header says
        http=cast(type[asyncio.Protocol], functools.partial(HttpConnection, refused=refused)),
        ws=DeviceSocket,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    http = _Http(config, tls)
    serving = asyncio.create_task(http.serve(sockets=[listening]))
    running = asyncio.ensure_future(main)
    watching = asyncio.create_task(tokens.watch() if tokens else asyncio.Event().wait())
    loop = asyncio.get_running_loop()
    stop = _Stop(http, drain)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await asyncio.wait({serving, running, watching}, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    watching.cancel()
    http.should_exit = True
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await running
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    finally:
        await serving
