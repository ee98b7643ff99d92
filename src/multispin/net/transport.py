"""The small interfaces between the protocol and whatever carries its frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class TransportClosed(Exception):
    """The other side is gone."""


class Transport(Protocol):
    """A device's end: whole binary messages, in order, either way."""

    async def send(self, data: bytes) -> None:
        """Raise TransportClosed when nobody can receive any more."""
        ...

    async def receive(self) -> bytes:
        """The next message; raise TransportClosed at the end."""
        ...

    async def close(self) -> None: ...


Receiver = Callable[[bytes | None], None]


class ServerTransport(Protocol):
    """The server's end. Nothing waits here: hundreds of devices share one thread."""

    receiver: Receiver | None  # is told every message, and None at the end

    @property
    def address(self) -> str | None:
        """Of the host at the other end; None: this process."""
        ...

    @property
    def num_unsent(self) -> int:
        """Bytes that were written and that nobody has read yet, as far as that is known."""
        ...

    def write(self, data: bytes) -> None:
        """Send a message; nobody may receive it any more."""
        ...

    def pause(self, is_paused: bool) -> None:
        """Whether to leave further messages where they are; a few may arrive all the same."""
        ...

    def close(self) -> None:
        """Deliver what was written, then close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class MemoryTransport:
    """A device's end of a link in the same process, for tests."""

    def __init__(self, far: MemoryServerTransport) -> None:
        self._far = far
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[MemoryTransport, MemoryServerTransport]:
        far = MemoryServerTransport()
        return cls(far), far

    async def send(self, data: bytes) -> None:
        if self._closed:
            raise TransportClosed
        if self._far.receiver is not None:
            self._far.receiver(data)

    async def receive(self) -> bytes:
        if self._closed:
            raise TransportClosed
        data = await self._far.sent.get()
        if data is None:
            self._closed = True
            raise TransportClosed
        return data

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._far.close()


class MemoryServerTransport:
    """The server's end of the same."""

    num_unsent = 0
    address = None

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.sent: asyncio.Queue[bytes | None] = asyncio.Queue()

    def write(self, data: bytes) -> None:
        self.sent.put_nowait(data)

    def pause(self, is_paused: bool) -> None:
        pass

    def close(self) -> None:
        self.sent.put_nowait(None)
        if self.receiver is not None:
            self.receiver(None)

    def abort(self) -> None:
        self.close()
