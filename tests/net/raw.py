"""A server on a real socket, and devices that send it whatever a test likes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import numpy as np
import websockets.asyncio.client
import websockets.exceptions

from multispin.api.app import ServerState, create_app
from multispin.api.serving import Protection, address_of, bind, serve_app
from multispin.core.batch import BatchLimits
from multispin.core.controller import ControlSettings
from multispin.core.limits import ServerLimits
from multispin.net.engine_process import LocalEngine
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.net.websocket import DEVICE_PATH
from multispin.types import Mode, SamplingParams
from multispin.wire import frames
from multispin.wire.frames import (
    Draft,
    Error,
    FromDevice,
    FromServer,
    Hello,
    Open,
    Opened,
    PrefixDigest,
    Verdict,
    Welcome,
)
from tests.core.harness import PROMPT, new_engine

F = TypeVar("F", bound=FromServer)
UNPROTECTED = Protection()
UNCONTROLLED = ControlSettings()


class Served:
    """A server that listens."""

    def __init__(self, server: EdgeServer, telemetry: Telemetry) -> None:
        self.server = server
        self.telemetry = telemetry
        self.address = ""
        self.devices: list[RawDevice] = []
        self.drain_s = 5.0
        self.running: asyncio.Task[None]
        self.serving: asyncio.Task[None]

    async def drain(self) -> None:
        await self.server.drain(self.drain_s)

    @property
    def host_and_port(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    async def connect(self, hello: FromDevice | None = None) -> RawDevice:
        """Without a hello the device has yet to be greeted."""
        device = await RawDevice.connect(self.address)
        self.devices.append(device)
        if hello is not None:
            await device.send(hello)
            await device.expect(Welcome)
        return device

    async def is_empty(self) -> None:
        """Wait until no link and no session is left."""
        await until(lambda: not self.server._links and self.server.core.num_sessions == 0)


def play(
    scene: Callable[[Served], Awaitable[None]],
    mode: Mode = "stop-and-wait",
    clock: Callable[[], float] = time.monotonic,
    protection: Protection = UNPROTECTED,
    directory: str = "",
    control: ControlSettings = UNCONTROLLED,
) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(60),
            served(mode, clock, protection, directory, control) as it,
        ):
            await scene(it)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def served(
    mode: Mode,
    clock: Callable[[], float] = time.monotonic,
    protection: Protection = UNPROTECTED,
    directory: str = "",
    control: ControlSettings = UNCONTROLLED,
) -> AsyncIterator[Served]:
    telemetry = Telemetry(control)
    limits = ServerLimits(batch=BatchLimits(max_rows=64, mode=mode), control=control)
    engine = LocalEngine(new_engine(num_sequences=8))
    server = EdgeServer(engine, limits, clock, [telemetry], directory=directory)
    app = create_app(ServerState(server, telemetry))
    it = Served(server, telemetry)
    listening = bind("127.0.0.1", 0)
    it.address = address_of(listening)
    it.running = asyncio.create_task(server.run())
    it.serving = asyncio.create_task(
        serve_app(app, listening, it.running, it.drain, telemetry.refused, protection)
    )
    await asyncio.sleep(0)
    try:
        yield it
    finally:
        for device in it.devices:
            device.socket.transport.abort()
        it.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await it.serving


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


class RawDevice:
    """Speaks frames, right or wrong."""

    def __init__(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        self.socket = socket

    @classmethod
    async def connect(cls, address: str) -> RawDevice:
        return cls(
            await websockets.asyncio.client.connect(
                f"ws://{address}{DEVICE_PATH}", compression=None, max_size=None, proxy=None
            )
        )

    async def send(self, frame: FromDevice) -> None:
        await self.socket.send(frames.encode(frame))

    async def receive(self) -> FromServer:
        return frames.decode_from_server(await self.socket.recv(decode=False))

    async def expect(self, kind: type[F]) -> F:
        """The next frame of that kind; others are passed over."""
        while not isinstance(frame := await self.receive(), kind):
            pass
        return frame

    async def close_code(self) -> int:
        """How the server ends the link, when it does."""
        try:
            while True:
                await self.receive()
        except websockets.exceptions.ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else 1006

    async def open(self, session: int = 0, **fields: object) -> Opened:
        await self.send(wanted(session, **fields))
        opened = await self.expect(Opened)
        assert opened.session == session
        return opened

    async def text(self, session: int = 0, **fields: object) -> list[int]:
        """All committed tokens of a session of which no draft is accepted."""
        await self.open(session, **{"draft_length": 0, **fields})
        ids: list[int] = []
        while True:
            verdict = await self.expect(Verdict)
            ids += [verdict.token][: verdict.num_committed]
            if verdict.finish:
                return ids

    async def leave(self) -> None:
        await self.socket.close()


HELLO = Hello(1, "lookup")


def wanted(session: int = 0, **fields: object) -> Open:
    defaults: dict[str, object] = {
        "prompt": PROMPT,
        "params": SamplingParams(temperature=0.8),
        "rule": "coupled",
        "seed": 7,
        "max_tokens": 48,
        "draft_length": 4,
        "wants_text": True,
    }
    return Open(session, **{**defaults, **fields})  # type: ignore[arg-type]


def draft(opened: Opened, ids: list[int], bits: int = 9, **fields: object) -> Draft:
    """A first draft as it has to be, but for the fields that are named."""
    prompt = frames.unpack_ids(opened.prompt_ids, bits, 1 << bits)
    tokens = frames.pack_tokens(np.array(ids, np.int32), np.zeros(len(ids), np.uint8), bits)
    right: dict[str, object] = {
        "session": opened.session,
        "epoch": 0,
        "start": len(prompt),
        "digest": PrefixDigest(prompt).digest(),
        "tokens": tokens,
    }
    return Draft(**{**right, **fields})  # type: ignore[arg-type]


async def error_of(device: RawDevice) -> Error:
    return await device.expect(Error)
