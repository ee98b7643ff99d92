"""A replica that says about itself whatever a test likes."""

from __future__ import annotations

import asyncio
import contextlib
import http
from collections.abc import AsyncIterator

import msgspec
import websockets.asyncio.server
import websockets.exceptions
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from multispin.wire import replica
from multispin.wire.frames import Welcome
from multispin.wire.replica import WATCH_PATH, Ask, FromWatcher, Status, Told

WELCOME = Welcome(1, "model", "print", 300, [256], 512, 32, True, "window")
STATUS = Status(
    name="a",
    condition="ok",
    welcome=WELCOME,
    num_sessions=0,
    max_sessions=8,
    num_rows_waiting=0,
    s_per_verdict=0.0,
    goodput_tokens_per_s=0.0,
    num_committed_tokens=0,
    pass_fixed_s=0.01,
    pass_s_per_session=0.0,
    pass_s_per_row=0.0,
)


def status(name: str = "a", **fields: object) -> Status:
    return msgspec.structs.replace(STATUS, name=name, **fields)


class FakeReplica:
    """``heard`` is what watchers have said. With a ``token`` it lets in who has that."""

    def __init__(self, name: str = "a", token: str = "") -> None:
        self.status = status(name)
        self.documents: dict[str, bytes] = {}  # those that it has
        self.heard: list[FromWatcher] = []
        self.links: set[ServerConnection] = set()
        self.address = ""
        self._token = token

    async def say(self, data: bytes | None = None) -> None:
        """To all its watchers: its status, or other bytes."""
        for link in list(self.links):
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                await link.send(replica.encode(self.status) if data is None else data)

    async def change(self, **fields: object) -> None:
        self.status = msgspec.structs.replace(self.status, **fields)
        await self.say()

    def cut(self) -> None:
        for link in list(self.links):
            link.transport.abort()

    async def _serve(self, link: ServerConnection) -> None:
        self.links.add(link)
        try:
            await link.send(replica.encode(self.status))
            async for data in link:
                assert isinstance(data, bytes)
                message = replica.decode_from_watcher(data)
                self.heard.append(message)
                if isinstance(message, Ask) and message.document in self.documents:
                    body = self.documents[message.document]
                    await link.send(replica.encode(Told(message.document, body)))
        except websockets.exceptions.ConnectionClosed:
            pass
        finally:
            self.links.discard(link)

    def _let_in(self, link: ServerConnection, request: Request) -> Response | None:
        if request.path != WATCH_PATH:
            return link.respond(http.HTTPStatus.NOT_FOUND, "")
        if self._token and request.headers.get("Authorization") != f"Bearer {self._token}":
            return link.respond(http.HTTPStatus.UNAUTHORIZED, '{"error": {"message": "no"}}')
        return None


@contextlib.asynccontextmanager
async def standing(fake: FakeReplica, port: int = 0) -> AsyncIterator[FakeReplica]:
    """It listens."""
    server = await websockets.asyncio.server.serve(
        fake._serve, "127.0.0.1", port, process_request=fake._let_in, ping_interval=None
    )
    host, at = next(iter(server.sockets)).getsockname()[:2]
    fake.address = f"{host}:{at}"
    try:
        yield fake
    finally:
        fake.cut()
        server.close()
        await server.wait_closed()


async def until(condition: object) -> None:
    """Until a function without arguments returns something true."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)
