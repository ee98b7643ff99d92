"""The WebSocket at which devices speak to the server; docs/protocol.md describes it.

ASGI carries a message through two tasks, two queues and a reader that stops and starts: 20 to 30
microseconds, and hundreds of devices send dozens of messages a second. So uvicorn's own WebSocket
shakes hands, pings and closes, and whole binary messages, all that our devices send, take a way of
their own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from multispin.core.tenant import LOCAL, Tenant
from multispin.net.offences import Pace
from multispin.net.server import EdgeServer
from multispin.net.server_link import MAX_UNSENT
from multispin.net.transport import Receiver
from multispin.wire.frames import MAX_FRAME_BYTES, Error, encode

EXTENSION = "multispin"  # of the ASGI scope, where the endpoint finds the socket itself
CLOSE_S = 2.0  # a device gets so long to read what it was sent
KEEPALIVE_S = 10.0  # who has said nothing for so long, not even to a ping, is gone
PING_S = 5.0  # who has said nothing for so long is asked
WHOLE_BINARY = 0x82  # the first byte of a frame that is a message of its own
MASKED = 0x80  # in the second byte, as in whatever comes from a client
CONTROL = 0x08  # in the first byte of a ping, pong or close
LAST = 0x80  # in the first byte of a message's last frame
NORMAL_CLOSURE = 1000
MAX_PARTS = 4096  # of a message that comes in several frames


class DeviceSocket(WebSocketsSansIOProtocol):
    """A ServerTransport, once it has a receiver; until then a WebSocket like any other."""

    receiver: Receiver | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unread = bytearray()  # of a frame whose end is still to come
        self._is_amid = False  # in a message of several frames
        self._is_paused = False
        self._heard_at = 0.0
        self._pace = Pace()  # of what is no message: those the server counts

    # --- ServerTransport -------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def num_unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        length = len(data)
        if length < 126:
            head = bytes((WHOLE_BINARY, length))
        elif length < 1 << 16:
            head = bytes((WHOLE_BINARY, 126)) + length.to_bytes(2, "big")
        else:
            head = bytes((WHOLE_BINARY, 127)) + length.to_bytes(8, "big")
        self.transport.write(head + data)

    def pause(self, is_paused: bool) -> None:
        if self.transport.is_closing():
            return
        self._is_paused = is_paused
        if is_paused:
            self.transport.pause_reading()
        else:
            self._heard_at = self.loop.time()  # what it said meanwhile comes now
            self.transport.resume_reading()
            if self._unread:
                asyncio.get_running_loop().call_soon(self._go_on)

    def close(self) -> None:
        if self.conn.close_sent or self.transport.is_closing():
            return
        self.pause(False)  # the answer is to be read
        self.conn.send_close(NORMAL_CLOSURE)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(CLOSE_S, self.transport.abort)

    def abort(self) -> None:
        self.transport.abort()

    # --- whether anybody is there ----------------------------------------------------------------

    def start_keepalive(self) -> None:
        """The handshake is done. uvicorn's own way also asks who is busy sending a long message,
        and closes by waiting for a peer that is gone."""
        self._heard_at = self.loop.time()
        self.ping_timer = self.loop.call_later(PING_S, self._ask)

    def _ask(self) -> None:
        """At PING_S without a sign of life, at KEEPALIVE_S, and whenever it might have been."""
        silent_s = 0.0 if self._is_paused else self.loop.time() - self._heard_at
        if silent_s >= KEEPALIVE_S:
            self.abort()
            return
        if silent_s >= PING_S and not self.close_sent:
            self.conn.send_ping(b"")
            self.transport.write(b"".join(self.conn.data_to_send()))
        next_s = KEEPALIVE_S if silent_s >= PING_S else PING_S
        self.ping_timer = self.loop.call_later(next_s - silent_s, self._ask)

    # --- what arrives ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        if self.receiver is None:
            super().data_received(data)
            return
        if self._unread:
            self._unread += data
            del self._unread[: self._take_frames(self._unread)]
        else:
            self._unread += data[self._take_frames(data) :]

    def _go_on(self) -> None:
        """With what came before it was paused."""
        if not self.transport.is_closing():
            self.data_received(b"")

    def _take_frames(self, data: bytes | bytearray) -> int:
        """Take the frames that are complete, until paused; where the last of them ends."""
        assert self.receiver is not None
        begin = 0
        while not self._is_paused and len(data) >= begin + 2:
            first, length, at = data[begin], data[begin + 1], begin + 2
            is_masked, length = length & MASKED, length & ~MASKED
            if length > 125:
                num_bytes = 2 if length == 126 else 8
                length, at = int.from_bytes(data[at : at + num_bytes], "big"), at + num_bytes
            at += 4 if is_masked else 0
            end = at if length > MAX_FRAME_BYTES else at + length  # refused by its head
            if len(data) < end:
                break
            if first == WHOLE_BINARY and is_masked and at < end and not self._is_amid:
                self.receiver(_unmasked(data[at:end], data[at - 4 : at]))
            elif self._is_flood():
                self.receiver(b"")  # refused like any bytes that are no frame
                self.abort()
                return len(data)
            else:
                super().data_received(bytes(data[begin:end]))
                if not first & CONTROL:
                    self._is_amid = not first & LAST
            begin = end
        return begin

    def _is_flood(self) -> bool:
        """Whether this is one ping or crumb of a message too many, or nobody reads the pongs."""
        is_spent = self._pace.is_spent(self.loop.time())
        return is_spent or self.num_unsent > MAX_UNSENT or len(self.frames) >= MAX_PARTS

    def send_receive_event_to_app(self) -> None:
        """A message that came in several frames is complete; or one of text, which is none."""
        if self.receiver is None:
            super().send_receive_event_to_app()
        else:
            message, self.frames = b"".join(self.frames), []
            self.receiver(message)

    def handle_parser_exception(self) -> None:
        """It speaks no WebSocket, which it is told by the code of a close: bytes that are no frame
        to whom they were sent."""
        if self.receiver is not None:
            self.receiver(b"")
        super().handle_parser_exception()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.receiver is not None:
            self.receiver(None)

    async def run_asgi(self) -> None:
        self.scope["extensions"][EXTENSION] = self  # type: ignore[assignment]
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:  # a refusal, all of it sent
            self.handshake_complete = True  # uvicorn would log an error otherwise


def _unmasked(data: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    num_bytes = len(data)
    masks = (mask * (num_bytes // 4 + 1))[:num_bytes]
    number = int.from_bytes(data, "little") ^ int.from_bytes(masks, "little")
    return number.to_bytes(num_bytes, "little")


async def serve_device(
    websocket: WebSocket, server: EdgeServer | None, tenant: Tenant = LOCAL
) -> None:
    """Speak with one device; there is no server while its model loads."""
    await websocket.accept()
    socket: DeviceSocket = websocket.scope["extensions"][EXTENSION]
    if server is not None:
        await server.serve(socket, tenant)
        return
    error = Error(None, "loading", "the server is loading its model: try again in a moment")
    socket.write(encode(error))
    socket.close()
