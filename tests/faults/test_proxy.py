"""The bad link does what it says, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.faults.proxy import Act, Deed, Message, Proxy, Script, honest
from tests.process import num_descriptors

Scene = Callable[["Echo", Proxy, ClientConnection], Awaitable[None]]
MESSAGES = [b"\x93\x01abc", b"", b"\x90" * 130, b"\x01" * 70_000, b"last"]


class Echo:
    """A server that sends back what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes | str] = []
        self.num_links = 0

    async def serve(self, link: ServerConnection) -> None:
        self.num_links += 1
        try:
            async for message in link:
                self.heard.append(message)
                await link.send(message)
        finally:
            self.num_links -= 1


def play(scene: Scene, script: Script = honest) -> None:
    async def main() -> None:
        before = num_descriptors()
        echo = Echo()
        async with serve(echo.serve, "127.0.0.1", 0, compression=None) as server:
            port = server.sockets[0].getsockname()[1]
            async with (
                Proxy(f"127.0.0.1:{port}", lambda number: script) as proxy,
                connect(f"ws://{proxy.address}/", compression=None, close_timeout=0.2) as link,
            ):
                await asyncio.wait_for(scene(echo, proxy, link), 10)
        await asyncio.sleep(0.05)
        assert num_descriptors() == before

    asyncio.run(main())


def at(number: int, deed: Deed, way: str = "up") -> Script:
    return lambda message: deed if (message.way, message.number) == (way, number) else Deed()


async def send_all(link: ClientConnection) -> None:
    for message in MESSAGES:
        await link.send(message)


async def heard_until_the_end(link: ClientConnection) -> list[bytes | str]:
    heard = []
    with pytest.raises(ConnectionClosed):
        while True:
            heard.append(await link.recv())
    return heard


def test_what_is_left_alone_arrives_as_it_was() -> None:
    seen: list[Message] = []

    def script(message: Message) -> Deed:
        seen.append(message)
        return Deed()

    async def scene(echo: Echo, proxy: Proxy, link: ClientConnection) -> None:
        await send_all(link)
        assert [await link.recv() for _ in MESSAGES] == MESSAGES == echo.heard
        assert sum(proxy.done.values()) == 0
        ups = [message for message in seen if message.way == "up"]
        assert [message.num_bytes for message in ups] == [len(data) for data in MESSAGES]
        assert [message.kind for message in ups] == [1, -1, 0x90, 1, ord("a")]
        assert len(seen) == 2 * len(MESSAGES)

    play(scene, script)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("number", range(len(MESSAGES)))
@pytest.mark.parametrize("act", [Act.CUT_BEFORE, Act.CUT_INSIDE, Act.CUT_BEHIND])
def test_a_cut_is_where_it_should_be(act: Act, number: int, way: str) -> None:
    async def scene(echo: Echo, proxy: Proxy, link: ClientConnection) -> None:
        try:
            await send_all(link)
        except ConnectionClosed:
            assert way == "up" or number < len(MESSAGES) - 1
        got = await heard_until_the_end(link)
        num_whole = number + (act is Act.CUT_BEHIND)
        passed = echo.heard if way == "up" else got
        assert passed == MESSAGES[:num_whole]
        assert proxy.done == {act: 1}

    play(scene, at(number, Deed(act), way))


def test_a_message_may_come_twice_or_behind_the_next() -> None:
    async def twice(echo: Echo, proxy: Proxy, link: ClientConnection) -> None:
        await send_all(link)
        for _ in range(len(MESSAGES) + 1):
            await link.recv()
        assert echo.heard == [MESSAGES[0], *MESSAGES]

    async def swapped(echo: Echo, proxy: Proxy, link: ClientConnection) -> None:
        await send_all(link)
        got = [await link.recv() for _ in MESSAGES]
        assert got == echo.heard == [MESSAGES[1], MESSAGES[0], *MESSAGES[2:]]

    play(twice, at(0, Deed(Act.TWICE)))
    play(swapped, at(0, Deed(Act.SWAP)))


def test_what_is_late_holds_up_what_follows_and_no_more_than_that() -> None:
    async def scene(echo: Echo, proxy: Proxy, link: ClientConnection) -> None:
        await send_all(link)
        assert await link.recv() == MESSAGES[0]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.recv(), 0.1)
        assert [await link.recv() for _ in MESSAGES[1:]] == MESSAGES[1:]
        assert proxy.num_late == 1

    play(scene, at(1, Deed(late_s=0.3)))


def test_on_a_half_open_link_neither_side_learns_of_the_other() -> None:
    async def scene(echo: Echo, proxy: Proxy, link: ClientConnection) -> None:
        await link.send(b"the last word")
        assert await link.recv() == b"the last word"
        await send_all(link)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.recv(), 0.1)
        await link.close()  # after its own timeout
        await asyncio.sleep(0.1)
        assert echo.num_links == 1
        proxy.cut()
        await asyncio.sleep(0.1)
        assert echo.num_links == 0

    play(scene, at(1, Deed(Act.SILENCE)))
