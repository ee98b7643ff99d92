"""Several servers and who names them to devices, without sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import msgspec

from multispin.errors import BadInput, PeerError
from multispin.net.device import Device
from multispin.net.line import Backoff
from multispin.net.link import DeviceLink
from multispin.net.router import Router
from multispin.net.server import EdgeServer
from multispin.types import Mode, Offline
from multispin.wire.frames import Find, Redirect
from tests.core.harness import new_drafter
from tests.net.road import Eager, Stretch, serving


class Known:
    """A router.Finder that names the first server that is not to be avoided."""

    def __init__(self, *servers: str) -> None:
        self.servers = list(servers)
        self.asked: list[Find] = []
        self.is_up, self.is_closed = True, False
        self.rng: random.Random = Eager()
        self.refusal = PeerError("nobody has room", code="overloaded", retry_after_s=0.01)

    def backoff(self) -> Backoff:
        return Backoff(self.rng)

    async def find(self, find: Find, *, waits: bool = True) -> Redirect:
        while waits and not (self.is_up or self.is_closed):
            await asyncio.sleep(0.005)
        self.asked.append(msgspec.structs.replace(find, avoid=list(find.avoid)))
        if not self.is_up or self.is_closed:
            raise PeerError("the link is closed", code="unreachable")
        open_to_it = [server for server in self.servers if server not in find.avoid]
        if find.last in open_to_it:
            return Redirect(0, find.last)
        if not open_to_it:
            raise self.refusal
        return Redirect(0, open_to_it[0])

    async def close(self) -> None:
        self.is_closed = True


class Site:
    """Replicas by their names, and the connections to each that there were."""

    def __init__(self, **servers: EdgeServer) -> None:
        self.servers: dict[str, EdgeServer | None] = {**servers}
        self.known = Known(*servers)
        self.stretches: dict[str, list[Stretch]] = {name: [] for name in servers}
        self.dialled: list[str] = []
        self.prepare: Callable[[str, Stretch], None] = lambda name, stretch: None
        self._serving: set[asyncio.Task[None]] = set()

    async def dial(self, name: str, number: int, kind: str = "none") -> DeviceLink:
        self.dialled.append(name)
        server = self.servers.get(name)
        if server is None:
            raise BadInput("--server", name, "nobody answers", code="unreachable")
        near, far = Stretch.pair()
        assert isinstance(near, Stretch)
        far.address = "192.0.2.7"  # type: ignore[assignment]  # from elsewhere
        self.prepare(name, near)
        self.stretches[name].append(near)
        speaking = asyncio.create_task(server.serve(far))
        self._serving.add(speaking)
        speaking.add_done_callback(self._serving.discard)
        return await DeviceLink.greet(near, kind, None, number=number)

    def cut(self, name: str) -> None:
        """All connections to it."""
        for stretch in self.stretches[name]:
            if not stretch._closed:
                stretch.cut()

    def kill(self, name: str) -> None:
        self.servers[name] = None
        self.cut(name)

    @contextlib.asynccontextmanager
    async def device(
        self, kind: str = "weaker", *, offline: Offline = "wait"
    ) -> AsyncIterator[Device]:
        async def dial(name: str, number: int) -> DeviceLink:
            return await self.dial(name, number, kind)

        device = Device(Router(self.known, dial), new_drafter(kind), offline=offline)
        try:
            yield device
        finally:
            await device.close()


@contextlib.asynccontextmanager
async def site(
    *names: str, mode: Mode = "window", directory: str = "directory"
) -> AsyncIterator[Site]:
    """Replicas that send elsewhere whoever was not placed there."""
    async with contextlib.AsyncExitStack() as stack:
        servers = {}
        for name in names:
            servers[name] = await stack.enter_async_context(serving(mode))
            servers[name]._directory = directory
        yield Site(**servers)
