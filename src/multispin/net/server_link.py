"""One device's connection, as the server sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from multispin.core.tenant import Tenant
from multispin.net.offences import REST_S, Offences, Pace, Uploads
from multispin.net.padded import PaddedServerTransport
from multispin.net.transport import ServerTransport, TransportClosed
from multispin.wire import frames
from multispin.wire.frames import Frame, FromDevice

MAX_UNSENT = 1 << 20  # bytes; a device that reads more slowly than this is cut off
MAX_WAITING = 1 << 20  # bytes that came; the rest waits in the network
MESSAGE_BYTES = 1 << 10  # that a message takes in memory besides its own


class Link:
    """What has come waits here for its turn, drafts excepted."""

    def __init__(self, transport: ServerTransport, tenant: Tenant, number: int) -> None:
        self.number = number
        self.tenant = tenant
        self.is_welcome = False  # it said hello
        self.num_received = self.num_sent = 0  # bytes of frames
        self.offences = Offences()
        self.uploads = Uploads()
        self.pace = Pace()
        self._transport = transport
        self._inbox: asyncio.Queue[tuple[FromDevice | None, int]] = asyncio.Queue()
        self._num_waiting = 0  # bytes in it
        self._rests = False
        self._is_paused = False
        self._is_gone = False

    @property
    def is_local(self) -> bool:
        """Whether it is of this process: a request to the server's own endpoint."""
        return self._transport.address is None

    @property
    def peer(self) -> tuple[str, str]:
        """Who is behind it, on whatever link."""
        return self.tenant.name, self._transport.address or ""

    @property
    def is_too_slow(self) -> bool:
        return self._transport.num_unsent > MAX_UNSENT

    def pad(self, answered: Callable[[int], None]) -> None:
        """From now on; see net/padded.py."""
        self._transport = PaddedServerTransport(self._transport, answered)

    def send(self, frame: Frame) -> None:
        data = frames.encode(frame)
        self.num_sent += len(data)
        self._transport.write(data)

    def put(self, message: FromDevice, num_bytes: int) -> None:
        """While reading goes on, the end of the link is heard of, and pings are answered."""
        self._inbox.put_nowait((message, num_bytes + MESSAGE_BYTES))
        self._num_waiting += num_bytes + MESSAGE_BYTES
        self._pause()

    def rest(self) -> None:
        """Read nothing for a while."""
        if not self._rests:
            asyncio.get_running_loop().call_later(REST_S, self._rested)
            self._rests = True
            self._pause()

    def _rested(self) -> None:
        self._rests = False
        self._pause()

    def _pause(self) -> None:
        """Read, or not."""
        should_pause = self._rests or self._num_waiting > MAX_WAITING
        if should_pause != self._is_paused:
            self._is_paused = should_pause
            self._transport.pause(should_pause)

    async def receive(self) -> FromDevice:
        """The next message; raise TransportClosed once the link is left, whatever waits."""
        self.check()
        message, num_bytes = await self._inbox.get()
        self.check()
        self._num_waiting -= num_bytes
        self._pause()
        assert message is not None
        return message

    def check(self) -> None:
        """Raise TransportClosed once the link is left."""
        if self._is_gone:
            raise TransportClosed

    def leave(self) -> None:
        """Nothing more is taken from it."""
        self._is_gone = True
        self._inbox.put_nowait((None, 0))  # for whoever waits

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
