"""Between a device and its server, without sockets: a road that can be cut, and built again."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

from multispin.core.batch import BatchLimits
from multispin.core.drafter import Drafter
from multispin.core.engine import Batch, StepResult
from multispin.core.limits import ServerLimits
from multispin.errors import BadInput
from multispin.net.device import Device
from multispin.net.engine_process import LocalEngine
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.server import EdgeServer
from multispin.net.transport import MemoryTransport, TransportClosed
from multispin.types import Mode, Offline, TokenIds
from tests.core.harness import new_drafter, new_engine


class Eager(random.Random):
    """Never waits."""

    def uniform(self, a: float, b: float) -> float:
        return a


class Stretch(MemoryTransport):
    """One connection. ``passes`` is asked before each message, in either direction."""

    passes: Callable[[], bool] = staticmethod(lambda: True)
    is_half_open = False  # the server will not hear of the end

    async def send(self, data: bytes) -> None:
        if not self.passes():
            self.cut()
        await super().send(data)

    async def receive(self) -> bytes:
        data = await super().receive()
        if not self.passes():
            self.cut()
            raise TransportClosed
        return data

    def cut(self) -> None:
        self._closed = True
        self._far.sent.put_nowait(None)
        if not self.is_half_open and self._far.receiver is not None:
            self._far.receiver(None)

    async def close(self) -> None:
        if not self._closed:
            self.cut()


class Road:
    """To a server that may be another one tomorrow."""

    def __init__(self, server: EdgeServer | None) -> None:
        self.server = server
        self.stretches: list[Stretch] = []
        self.prepare: Callable[[Stretch], None] = lambda stretch: None
        self._serving: set[asyncio.Task[None]] = set()

    async def dial(self, kind: str, fingerprint: str | None) -> DeviceLink:
        if self.server is None:
            raise BadInput("--server", "road", "nobody answers", code="unreachable")
        near, far = Stretch.pair()
        assert isinstance(near, Stretch)
        self.prepare(near)
        self.stretches.append(near)
        serving = asyncio.create_task(self.server.serve(far))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        return await DeviceLink.greet(near, kind, fingerprint)

    def cut(self) -> None:
        self.stretches[-1].cut()

    @contextlib.asynccontextmanager
    async def device(
        self,
        kind: str = "weaker",
        *,
        offline: Offline = "wait",
        rng: random.Random | None = None,
        drafter: Drafter | None = None,
    ) -> AsyncIterator[Device]:
        drafter = drafter or new_drafter(kind)
        own = drafter.vocabulary if drafter else None

        async def dial() -> DeviceLink:
            return await self.dial(kind, own.fingerprint if own else None)

        line = Line(await dial(), [dial], rng=rng or Eager())
        device = Device(line, drafter, offline=offline)
        try:
            yield device
        finally:
            await device.close()


class Unhurried(LocalEngine):
    """Its passes leave devices the time to draft."""

    num_tokenized = 0  # prompts

    async def step(self, batch: Batch) -> StepResult:
        await asyncio.sleep(0.001)
        return await super().step(batch)

    async def tokenize(self, text: str, *, parse_special: bool) -> TokenIds:
        self.num_tokenized += 1
        return await super().tokenize(text, parse_special=parse_special)


@contextlib.asynccontextmanager
async def serving(mode: Mode = "window", num_sequences: int = 4) -> AsyncIterator[EdgeServer]:
    limits = ServerLimits(batch=BatchLimits(max_rows=32, mode=mode))
    server = EdgeServer(Unhurried(new_engine(num_sequences)), limits)
    running = asyncio.create_task(server.run())
    try:
        yield server
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
