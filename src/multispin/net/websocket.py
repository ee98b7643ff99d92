"""The WebSocket that carries frames, on the device's side."""

from __future__ import annotations

import logging

import msgspec
import websockets.asyncio.client
import websockets.exceptions
import websockets.http11

from multispin.errors import BadInput, MultispinError, PeerError
from multispin.net.address import Address, reason_of
from multispin.net.transport import TransportClosed
from multispin.wire.frames import MAX_FRAME_BYTES

CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
DEVICE_PATH = "/v1/device"
# A server that is gone without a word is found out within the sum of both.
PING_EVERY_S = 5.0
PONG_WITHIN_S = 5.0

REFUSALS = {401: "unauthorized", 403: "forbidden", 429: "rate_limited", 503: "unreachable"}


# At level debug it would write down the handshake, and with it the token.
_quiet = logging.getLogger("multispin.websocket")
_quiet.setLevel(logging.WARNING)


class _Connect(websockets.asyncio.client.connect):
    """Goes where it was told to, and nowhere else."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebSocketTransport:
    """The client's end of a WebSocket."""

    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        self._socket = socket

    @classmethod
    async def connect(cls, address: Address, path: str = DEVICE_PATH) -> WebSocketTransport:
        """Raise BadInput when nobody answers there, PeerError when we are not let in."""
        scheme = "ws" if address.tls is None else "wss"
        try:
            socket = await _Connect(
                f"{scheme}://{address.authority}{path}",
                ssl=address.tls,
                additional_headers=address.headers,
                compression=None,  # packed ids do not shrink
                max_size=MAX_FRAME_BYTES,
                open_timeout=CONNECT_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=PING_EVERY_S,
                ping_timeout=PONG_WITHIN_S,
                proxy=None,
                logger=_quiet,
            )
        except websockets.exceptions.InvalidStatus as error:
            raise _refusal(address, error) from None
        except (OSError, websockets.exceptions.InvalidHandshake) as error:
            reason = reason_of(error, over_tls=address.tls is not None)
            raise BadInput(
                "--server",
                address,
                f"no multispin server answers there ({reason}): start one with `multispin serve`",
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


def _refusal(address: Address, error: websockets.exceptions.InvalidStatus) -> MultispinError:
    status, headers = error.response.status_code, error.response.headers
    if status not in REFUSALS:
        remedy = f"who answers there is no multispin server (status {status})"
        return BadInput("--server", address, remedy, code="unreachable")
    wait = headers.get("Retry-After", "")
    return PeerError(
        f"{address} refuses the connection: {_told(error.response)}",
        code=REFUSALS[status],
        retry_after_s=float(wait) if wait.isdigit() else 0.0,
    )


def _told(response: websockets.http11.Response) -> str:
    """Why, in the words of its body."""
    try:
        return str(msgspec.json.decode(response.body)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError):
        return response.reason_phrase
