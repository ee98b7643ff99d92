"""The WebSocket that carries frames, on the device's side."""

from __future__ import annotations

import websockets.asyncio.client
import websockets.exceptions

from multispin.errors import BadInput
from multispin.net.transport import TransportClosed
from multispin.wire.frames import MAX_FRAME_BYTES

CONNECT_TIMEOUT_S = 10.0
DEVICE_PATH = "/v1/device"


class WebSocketTransport:
    """The client's end of a WebSocket."""

    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        self._socket = socket

    @classmethod
    async def connect(cls, server: str) -> WebSocketTransport:
        """``server`` is HOST:PORT. Raise BadInput when nobody answers there."""
        try:
            socket = await websockets.asyncio.client.connect(
                f"ws://{server}{DEVICE_PATH}",
                compression=None,  # packed ids do not shrink
                max_size=MAX_FRAME_BYTES,
                open_timeout=CONNECT_TIMEOUT_S,
                proxy=None,
            )
        except (websockets.exceptions.InvalidURI, ValueError):
            raise BadInput("--server", server, "must be HOST:PORT") from None
        except (OSError, TimeoutError, websockets.exceptions.InvalidHandshake) as error:
            raise BadInput(
                "--server",
                server,
                f"no multispin server answers there ({error}): start one with `multispin serve`",
                code="unreachable",
            ) from None
        return cls(socket)

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send(data)
        except websockets.exceptions.ConnectionClosed:
            raise TransportClosed from None

    async def receive(self) -> bytes:
        try:
            return await self._socket.recv(decode=False)
        except websockets.exceptions.ConnectionClosed:
            raise TransportClosed from None

    async def close(self) -> None:
        await self._socket.close()
