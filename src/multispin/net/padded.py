"""Padded links: transports around transports; multispin.wire.padding says what leaves when."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable

from multispin.errors import PeerError
from multispin.net.transport import Receiver, ServerTransport, Transport, TransportClosed
from multispin.wire.padding import PACE_S, Packer, Unpacker, goes_on

CLOSE_S = 1.0  # the last words get so long to leave


class PaddedTransport:
    """The device's end: it sets the pace, from the first frame on and while it ``is_busy``."""

    def __init__(self, inner: Transport, is_busy: Callable[[], bool]) -> None:
        self._inner = inner
        self._is_busy = is_busy
        self._packer, self._unpacker = Packer(), Unpacker()
        self._received: collections.deque[bytes] = collections.deque()
        self._in_order = asyncio.Lock()  # parcels leave as they were packed
        self._wake = asyncio.Event()
        self._pacer = asyncio.create_task(self._keep_pace())

    async def send(self, data: bytes) -> None:
        async with self._in_order:
            await self._send(self._packer.add(data))
        self._wake.set()

    async def receive(self) -> bytes:
        while not self._received:
            self._received += self._unpacker.feed(await self._inner.receive())
        return self._received.popleft()

    async def close(self) -> None:
        self._pacer.cancel()
        with contextlib.suppress(TransportClosed, TimeoutError):
            async with asyncio.timeout(CLOSE_S), self._in_order:
                await self._send(self._packer.rest())
        await self._inner.close()

    async def _send(self, parcels: list[bytes]) -> None:
        for parcel in parcels:
            await self._inner.send(parcel)

    async def _keep_pace(self) -> None:
        with contextlib.suppress(TransportClosed):  # whoever receives is told
            while True:
                await self._wake.wait()
                await self._run()
                self._wake.clear()

    async def _run(self) -> None:
        """One run of ticks, until all is said and their number is a power of two."""
        clock = asyncio.get_running_loop().time
        num_ticks, due = 0, clock()
        while goes_on(num_ticks, self._is_busy() or self._packer.num_waiting > 0):
            async with self._in_order:
                await self._send(self._packer.tick())
            num_ticks += 1
            due = max(due + PACE_S, clock())
            await asyncio.sleep(due - clock())


class PaddedServerTransport:
    """The server's end: each parcel is answered, before it is looked into. ``answered`` is told
    with how many: empty ones, too, cost time, and may not be read."""

    def __init__(
        self, inner: ServerTransport, answered: Callable[[int], None] = lambda num_parcels: None
    ) -> None:
        self._inner = inner
        self._answered = answered
        self._packer, self._unpacker = Packer(), Unpacker()
        self.receiver: Receiver | None = inner.receiver
        inner.receiver = self._receive

    @property
    def address(self) -> str | None:
        return self._inner.address

    @property
    def num_unsent(self) -> int:
        return self._inner.num_unsent + self._packer.num_waiting

    def write(self, data: bytes) -> None:
        self._write(self._packer.add(data))

    def pause(self, is_paused: bool) -> None:
        self._inner.pause(is_paused)

    def close(self) -> None:
        self._write(self._packer.rest())
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()

    def _write(self, parcels: list[bytes]) -> None:
        for parcel in parcels:
            self._inner.write(parcel)

    def _receive(self, data: bytes | None) -> None:
        for frame in self._frames(data):
            if self.receiver is not None:
                self.receiver(frame)

    def _frames(self, data: bytes | None) -> list[bytes] | list[None]:
        if data is None:
            return [None]
        parcels = self._packer.tick()
        self._write(parcels)
        self._answered(len(parcels))
        try:
            return self._unpacker.feed(data)
        except PeerError:
            return [b""]  # refused as any bytes that are no frame
