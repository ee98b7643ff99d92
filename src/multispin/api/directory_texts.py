"""Texts at a directory, for clients that speak HTTP only: a device without a drafter writes them.

It is one device for each access token. It finds replicas in this process, and shows them the token
of who asks, so that each has there what it would have had without a directory. What a device
outlasts, its clients do not notice: a replica that is lost is a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from msgspec.structs import replace as changed
from starlette.datastructures import Headers
from starlette.types import Scope

from multispin.api.auth import TENANT
from multispin.api.errors import ApiError
from multispin.api.texts import AUTO
from multispin.core.tenant import LOCAL, Tenant
from multispin.errors import BadInput, PeerError
from multispin.net.address import Address, is_loopback
from multispin.net.device import Device, Request
from multispin.net.directory import RETRY_S, Directory, TargetState
from multispin.net.line import Backoff
from multispin.net.link import DeviceLink
from multispin.net.router import Router
from multispin.net.telemetry import NO_DRAFTER
from multispin.net.websocket import WebSocketTransport
from multispin.net.writing import Writing
from multispin.types import AcceptanceRule
from multispin.wire.frames import Find, Redirect, Wish

MAX_TEXTS = 2048  # that are written at the same time
MAX_IDLE = 256  # devices that write nothing and keep their links for a while


class Proxy:
    """``address`` is where a listed replica is; `drain` refuses what is new."""

    def __init__(
        self,
        directory: Directory,
        address: Callable[[str], Address],
        rng: random.Random | None = None,
    ) -> None:
        self.num_texts = 0
        self.is_draining = False
        self._directory = directory
        self._address = address
        self._rng = rng or random.Random()
        self._devices: dict[tuple[str, str], _Shared] = {}  # who was asked last comes last
        self._left = asyncio.Event()

    def texts(self, scope: Scope) -> Sequence[DirectoryTexts]:
        """Of all listed targets, and where there is a choice of whichever fits, for who asks."""
        who = scope.get(TENANT)
        token = Headers(scope=scope).get("authorization", "").partition(" ")[2].strip()
        tenant, token = (LOCAL, "") if who is None else (who, token)
        targets = list(self._directory.targets)
        texts = [DirectoryTexts(self, tenant, token, t.listed.name, [t]) for t in targets]
        if len(targets) > 1:
            texts.append(DirectoryTexts(self, tenant, token, AUTO, targets))
        return texts

    async def drain(self, seconds: float) -> None:
        """What is being written may end, for so long."""
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.num_texts:
                    self._left.clear()
                    await self._left.wait()

    async def close(self) -> None:
        devices, self._devices = self._devices, {}
        await asyncio.gather(*(shared.device.close() for shared in devices.values()))

    @contextlib.asynccontextmanager
    async def device(self, tenant: Tenant, token: str) -> AsyncIterator[Device]:
        """Of the token, for one text."""
        if self.is_draining:
            raise ApiError(503, "this directory is being stopped", code="draining")
        if self.num_texts >= MAX_TEXTS:
            message = f"{MAX_TEXTS} texts are being written at this directory: try again later"
            raise PeerError(message, code="overloaded", retry_after_s=RETRY_S)
        key = (tenant.name, token)
        shared = self._devices.pop(key, None) or _Shared(self._new_device(tenant, token))
        self._devices[key] = shared
        shared.num_texts += 1
        self.num_texts += 1
        try:
            await self._close_idle()
            yield shared.device
        finally:
            shared.num_texts -= 1
            self.num_texts -= 1
            self._left.set()

    def _new_device(self, tenant: Tenant, token: str) -> Device:
        async def dial(server: str, number: int) -> DeviceLink:
            transport = await WebSocketTransport.connect(self._shown(server, token))
            try:
                return await DeviceLink.greet(transport, NO_DRAFTER, None, number=number)
            except BaseException:
                await transport.close()
                raise

        return Device(Router(LocalFinder(self._directory, tenant, self._rng), dial), None)

    def _shown(self, server: str, token: str) -> Address:
        """Where a replica is, with the client's token instead of the directory's."""
        address = self._address(server)
        if token and address.tls is None and not is_loopback(address.host):
            message = f"{server} has no TLS: an access token would cross the network in the clear"
            raise PeerError(message, code="forbidden")
        return replace(address, token=token, token_file="")

    async def _close_idle(self) -> None:
        idle = [key for key, shared in self._devices.items() if not shared.num_texts]
        # None of them may be taken for a text while another one closes.
        devices = [self._devices.pop(key).device for key in idle[: max(len(idle) - MAX_IDLE, 0)]]
        await asyncio.gather(*(device.close() for device in devices))


class _Shared:
    """A device, and how many texts it writes."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.num_texts = 0


class LocalFinder:
    """A router.Finder in the directory's own process."""

    is_up = True

    def __init__(self, directory: Directory, tenant: Tenant, rng: random.Random) -> None:
        self._directory = directory
        self._tenant = tenant
        self._rng = rng

    def backoff(self) -> Backoff:
        return Backoff(self._rng)

    async def find(self, find: Find, *, waits: bool = True) -> Redirect:
        try:
            return self._directory.find(self._tenant, find)
        except BadInput as error:
            raise PeerError(str(error), code=error.code) from None

    async def close(self) -> None:
        pass


class DirectoryTexts:
    """Those of a target, or of whichever of ``targets`` is chosen for each, for who asks."""

    drafter = NO_DRAFTER
    draft_length = 0
    rule: AcceptanceRule = "coupled"

    def __init__(
        self, proxy: Proxy, tenant: Tenant, token: str, name: str, targets: Sequence[TargetState]
    ) -> None:
        self.target = name
        known = [target.welcome.context_length for target in targets if target.welcome]
        self.context_length = min(known, default=0)
        self.is_up = any(target.serves for target in targets)
        self._targets = targets
        self._proxy = proxy
        self._tenant = tenant
        self._token = token

    @contextlib.asynccontextmanager
    async def write(self, request: Request) -> AsyncIterator[Writing]:
        """Raise ApiError while no replica of the target serves: who has begun waits for one."""
        wish = changed(request.wish, target="" if self.target == AUTO else self.target)
        targets = self._targets[:1] if wish == Wish() else self._targets  # as the directory's rule
        if not any(target.serves for target in targets):
            message = f"no replica of {targets[0].listed.name} serves now: try again in a moment"
            raise ApiError(503, message, code="loading", retry_after_s=RETRY_S)
        async with (
            self._proxy.device(self._tenant, self._token) as device,
            device.write(request._replace(wish=wish)) as writing,
        ):
            yield writing
