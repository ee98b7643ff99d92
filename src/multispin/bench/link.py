"""A device's end of a WebSocket, with a link's round trip and uplink rate, and little else.

Hundreds of devices live in one process beside the server that is measured: this client costs a
fifth of a complete one. It speaks to our own server only: no fragments, and its mask is zero.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator

from multispin.errors import BadInput
from multispin.net.transport import TransportClosed
from multispin.net.websocket import DEVICE_PATH
from multispin.wire.frames import TRANSPORT_BITS

BINARY, CLOSE, PING, PONG = 0x82, 0x88, 0x89, 0x8A  # first byte of a frame that is whole
ZERO_MASK = bytes(4)


class ShapedSocket(asyncio.Protocol):
    """Messages of either direction arrive half a round trip late, in order.

    Uploads leave one after the other at ``uplink_bits_per_s`` (0: at once), headers included.
    """

    def __init__(self, round_trip_s: float, uplink_bits_per_s: float) -> None:
        self._delay_s = round_trip_s / 2
        self._uplink_bits_per_s = uplink_bits_per_s
        self._uplink_free_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._welcome: asyncio.Future[bytes] = self._loop.create_future()
        self._unread = bytearray()

    @classmethod
    async def connect(
        cls, server: str, round_trip_s: float, uplink_bits_per_s: float
    ) -> ShapedSocket:
        """``server`` is HOST:PORT. Raise BadInput when no server of ours answers there."""
        host, _, port = server.rpartition(":")
        loop = asyncio.get_running_loop()
        key = base64.b64encode(os.urandom(16)).decode()
        try:
            _, self = await loop.create_connection(
                lambda: cls(round_trip_s, uplink_bits_per_s), host.strip("[]"), int(port)
            )
            self._transport.write(
                f"GET {DEVICE_PATH} HTTP/1.1\r\nHost: {server}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            answer = (await self._welcome).split(b"\r\n", 1)[0]
        except (OSError, ValueError, TransportClosed) as error:
            answer = str(error).encode()
        if b" 101 " not in answer:
            raise BadInput("--server", server, f"is no multispin server: {answer.decode()}")
        return self

    # --- the transport of a DeviceLink -----------------------------------------------------------

    async def send(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise TransportClosed
        leaves_at = self._loop.time()
        if self._uplink_bits_per_s:
            num_bits = 8 * len(data) + TRANSPORT_BITS
            leaves_at = max(leaves_at, self._uplink_free_at) + num_bits / self._uplink_bits_per_s
            self._uplink_free_at = leaves_at
        self._loop.call_at(leaves_at + self._delay_s, self._write, BINARY, data)

    async def receive(self) -> bytes:
        data = await self._inbox.get()
        if data is None:
            self._inbox.put_nowait(None)  # closed it stays
            raise TransportClosed
        return data

    async def close(self) -> None:
        self._write(CLOSE, b"")
        self._transport.close()

    def _write(self, kind: int, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if len(data) < 126:
            length = bytes((0x80 | len(data),))
        else:
            length = b"\xff" + len(data).to_bytes(8, "big")
        self._transport.write(bytes((kind,)) + length + ZERO_MASK + data)

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._welcome.done():
            self._welcome.set_exception(TransportClosed())
        self._loop.call_later(self._delay_s, self._inbox.put_nowait, None)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if not self._welcome.done():
            head, end, rest = bytes(self._unread).partition(b"\r\n\r\n")
            if not end:
                return
            self._welcome.set_result(head)
            self._unread = bytearray(rest)
        for kind, payload in self._frames():
            if kind == PING:
                self._loop.call_later(2 * self._delay_s, self._write, PONG, payload)
            else:
                message = payload if kind == BINARY else None
                self._loop.call_later(self._delay_s, self._inbox.put_nowait, message)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """The frames that are complete: kind and payload, which the server does not mask."""
        unread = self._unread
        while len(unread) >= 2:
            length, begin = unread[1], 2
            if length >= 126:
                begin = 4 if length == 126 else 10
                if len(unread) < begin:
                    return
                length = int.from_bytes(unread[2:begin], "big")
            if len(unread) < begin + length:
                return
            kind, payload = unread[0], bytes(unread[begin : begin + length])
            del unread[: begin + length]
            yield kind, payload
