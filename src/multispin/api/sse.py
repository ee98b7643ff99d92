"""Server-sent events, and clients that go away or stop reading."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive, Scope, Send

from multispin.api.errors import ApiError

STALL_S = 30.0  # a client that takes nothing for so long is cut off
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy should pass on what it gets
]


class EventStream:
    """Events to one client. What it has not read yet is held by its socket and a buffer of 64 KiB;
    beyond that, writing waits for it. Where that takes too long its connection is ended, and all
    goes on as if the client had left."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._transport: asyncio.Transport = scope["state"]["transport"]
        self._starting = asyncio.Lock()
        self.has_started = False

    async def start(self) -> None:
        """Answer 200; the first to call it does."""
        async with self._starting:
            if not self.has_started:
                start = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
                await self._within_limit(start)
                self.has_started = True

    async def send(self, *documents: bytes) -> None:
        """One event for each document, in one go."""
        await self._write(b"".join(b"data: %b\n\n" % document for document in documents))

    async def end(self) -> None:
        await self._write(b"data: [DONE]\n\n", more_body=False)

    async def fail(self, error: ApiError) -> None:
        """The status is sent already: the error is the last event."""
        await self._write(b"data: %b\n\n" % error.body(), more_body=False)

    async def _write(self, body: bytes, *, more_body: bool = True) -> None:
        event = {"type": "http.response.body", "body": body, "more_body": more_body}
        await self._within_limit(event)

    async def _within_limit(self, event: dict[str, Any]) -> None:
        if not self._transport.get_write_buffer_size():  # it will not have to wait
            await self._send(event)
            return
        loop = asyncio.get_running_loop()
        limit = loop.call_later(STALL_S, self._transport.abort)
        try:
            await self._send(event)
        finally:
            limit.cancel()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; drop it at once when the client is gone."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
