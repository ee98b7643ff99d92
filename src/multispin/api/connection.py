"""An HTTP connection: uvicorn's, and whoever says nothing, or stops amid a request's head, goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from multispin.api.sse import STALL_S

HEAD_S = 10.0  # a client gets so long for a request's head; its body has a limit of its own

Refused: TypeAlias = Callable[[str], None]  # is told the code of whatever is refused


class HttpConnection(H11Protocol):
    """The application finds the transport in its state, to cut off a client that does not read: a
    close would wait for it."""

    def __init__(self, *arguments: Any, refused: Refused, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._refused = refused
        self._head_limit: asyncio.TimerHandle | None = None
        # Over TLS it is not made before the handshake is, and some never are.
        self._handshake_limit = self.loop.call_later(HEAD_S, refused, "bad_handshake")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._handshake_limit.cancel()
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_limit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Of a body whose request is answered already nobody wants to know the end.
        is_wanted = self.conn.our_state is not h11.DONE
        if self.conn.their_state is not h11.IDLE and is_wanted:
            self._stop_limit()
        elif self._head_limit is None:
            self._limit_head()

    def send_400_response(self, msg: str) -> None:
        self._refused("http_400")
        if self.cycle is not None:  # the head was good, and somebody may be about to answer it
            self.cycle.disconnected = True
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # amid an answer
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_reading(0)

    def _expect_reading(self, num_before: int) -> None:
        """All is written. Who does not read it would never let the connection close."""
        num_unread = self.transport.get_write_buffer_size()
        if num_unread and num_unread == num_before:
            self._refused("too_slow")
            self.transport.abort()
        elif num_unread:
            self.loop.call_later(STALL_S, self._expect_reading, num_unread)

    def _limit_head(self) -> None:
        self._head_limit = self.loop.call_later(HEAD_S, self._too_late)

    def _stop_limit(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _too_late(self) -> None:
        self._refused("silent")
        self.transport.abort()


def counting(app: ASGIApp, refused: Refused) -> ASGIApp:
    """The application; its answers of status 400 and above are told as http_ and the status."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"].endswith("http.response.start") and message["status"] >= 400:
                refused(f"http_{message['status']}")
            await send(message)

        await app(scope, receive, tell)

    return counted
