"""Who writes the texts behind an endpoint: this server, or a server that this device drafts for.

One way for both: `net.device.Device`. On the server it has no drafter, and its link does not leave
the process: its texts go through the same batches, under the same limits, as everybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from starlette.types import Scope

from multispin.api.errors import ApiError
from multispin.core.tenant import LOCAL, Tenant
from multispin.errors import PeerError
from multispin.net.device import Device, Request
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.server import EdgeServer
from multispin.net.telemetry import NO_DRAFTER
from multispin.net.transport import MemoryTransport
from multispin.net.writing import Writing
from multispin.types import AcceptanceRule, Offline
from multispin.wire.frames import Wish

MAX_WAITING = 64  # texts that wait for a place at a device's drafter
NOTHING = Wish()
AUTO = "auto"  # as the name of a target: whichever meets the request's budgets best


class Texts(Protocol):
    """What the endpoints know of whoever writes."""

    @property
    def target(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def drafter(self) -> str: ...
    @property
    def draft_length(self) -> int:
        """Of requests that do not state one."""
        ...

    @property
    def rule(self) -> AcceptanceRule:
        """Of requests above temperature 0 that do not name one."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether texts can be written now."""
        ...

    def write(self, request: Request) -> AbstractAsyncContextManager[Writing]:
        """As `Device.write`: open a session, iterate for what is committed, leave to close it."""
        ...


# All that answer here, for who asks. Raises MultispinError (code loading) while nobody does yet.
FindTexts: TypeAlias = Callable[[Scope], Sequence[Texts]]


def texts_of(model: str, answering: Sequence[Texts]) -> Texts:
    """Those of the target that a request names. Raise ApiError where there is none."""
    for texts in answering:
        if texts.target == model:
            return texts
    targets = ", ".join(texts.target for texts in answering)
    message = f"model = {model}: this endpoint has {targets} only"
    raise ApiError(404, message, code="model_not_found", param="model")


class ServerTexts:
    """Texts of a server in this process, by the target alone."""

    drafter = NO_DRAFTER
    draft_length = 0
    rule: AcceptanceRule = "coupled"

    def __init__(self, server: EdgeServer, tenant: Tenant = LOCAL) -> None:
        self._server = server
        self._tenant = tenant
        self._serving: set[asyncio.Task[None]] = set()
        self.target = server.core.info.target
        self.context_length = server.core.info.context_length

    def bound_to(self, tenant: Tenant) -> ServerTexts:
        """The same for who asks."""
        own = copy.copy(self)
        own._tenant = tenant
        return own

    @property
    def is_up(self) -> bool:
        return self._server.engine.ready

    @contextlib.asynccontextmanager
    async def write(self, request: Request) -> AsyncIterator[Writing]:
        """On a link of its own: a long prompt holds up no other request, and whatever happens to
        this one, the end of its link ends its session."""
        near, far = MemoryTransport.pair()
        serving = asyncio.create_task(self._server.serve(far, self._tenant))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        try:
            link = await DeviceLink.greet(near, NO_DRAFTER, None)
            device = Device(Line(link), None)
            try:
                async with device.write(request) as writing:
                    yield writing
            finally:
                await device.close()
        finally:
            await near.close()


class DeviceTexts:
    """Texts of a device agent: it drafts, the server at the other end of its link verifies."""

    def __init__(
        self,
        device: Device,
        drafter: str,
        *,
        num_places: int,
        draft_length: int,
        rule: AcceptanceRule = "coupled",
        wish: Wish = NOTHING,
    ) -> None:
        self._device = device
        self._wish = wish
        self._places = asyncio.Semaphore(num_places)
        self._num_waiting = 0
        self.target = wish.target or device.router.welcome.target
        self.context_length = device.router.welcome.context_length
        self.drafter = drafter
        self.draft_length = draft_length
        self.rule = rule

    @property
    def is_up(self) -> bool:
        return self._device.line.is_up

    @property
    def trouble(self) -> str:
        """Why they cannot."""
        return self._device.line.trouble

    @property
    def offline(self) -> Offline:
        """What becomes of them meanwhile."""
        return self._device.offline

    @contextlib.asynccontextmanager
    async def write(self, request: Request) -> AsyncIterator[Writing]:
        """Waits for a place at the drafter first."""
        request = request._replace(wish=_wish(self._wish, request.wish))
        async with self._place(), self._device.write(request) as writing:
            yield writing

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._num_waiting >= MAX_WAITING:
            message = f"{self._num_waiting} texts are waiting already: try again later, or start "
            raise PeerError(message + "the device with a larger --max-sessions", code="overloaded")
        self._num_waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._num_waiting -= 1
        try:
            yield
        finally:
            self._places.release()


def _wish(own: Wish, asked: Wish) -> Wish:
    """What a request asks for, and where that is nothing what its device does."""
    names = Wish.__struct_fields__
    return Wish(*(getattr(asked, name) or getattr(own, name) for name in names))
