"""The small interface between the protocol and whatever carries its frames."""

from __future__ import annotations

import asyncio
from typing import Protocol


class TransportClosed(Exception):
    """The other side is gone."""


class Transport(Protocol):
    """Whole binary messages, in order, either way."""

    async def send(self, data: bytes) -> None:
        """Raise TransportClosed when nobody can receive any more."""
        ...

    async def receive(self) -> bytes:
        """The next message; raise TransportClosed at the end."""
        ...

    async def close(self) -> None: ...


class MemoryTransport:
    """One end of a pair in the same process, for tests and the simulator."""

    def __init__(
        self, incoming: asyncio.Queue[bytes | None], outgoing: asyncio.Queue[bytes | None]
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[MemoryTransport, MemoryTransport]:
        up: asyncio.Queue[bytes | None] = asyncio.Queue()
        down: asyncio.Queue[bytes | None] = asyncio.Queue()
        return cls(down, up), cls(up, down)

    async def send(self, data: bytes) -> None:
        if self._closed:
            raise TransportClosed
        self._outgoing.put_nowait(data)

    async def receive(self) -> bytes:
        if self._closed:
            raise TransportClosed
        data = await self._incoming.get()
        if data is None:
            self._closed = True
            raise TransportClosed
        return data

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outgoing.put_nowait(None)
            self._incoming.put_nowait(None)
