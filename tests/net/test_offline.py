"""Without a link a small model goes on alone; what it said is confirmed, or taken back."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from multispin.core.device import Committed
from multispin.core.reading import extended
from multispin.errors import BadInput
from multispin.net.device import Device, Request
from multispin.net.drafting import DrafterOptions, connect
from multispin.types import Mode
from tests.net.road import Road, serving
from tests.net.test_server import wanted
from tests.net.test_writing import play, undisturbed


class Reader:
    """Follows the rules of docs/http.md."""

    def __init__(self) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.num_provisional = self.num_committed = self.num_replaced = 0

    def take(self, news: Committed) -> None:
        if news.replaces is not None:
            self.num_replaced += len(self.ids) - news.replaces.token
            del self.ids[news.replaces.token :]
        self.text = extended(self.text, news.text, news.replaces)
        self.ids += news.ids[news.num_shown :]
        if news.provisional:
            self.num_provisional += len(news.ids)
        else:
            self.num_committed += len(news.ids)


async def read(road: Road, device: Device, order: Request, num_alone: int) -> Reader:
    """The link is cut at once and is back when so many provisional tokens were told of."""
    server, reader = road.server, Reader()
    async with device.write(order) as writing:
        async for news in writing:
            reader.take(news)
            if reader.num_provisional == 0 and not news.provisional:
                road.server = None
                road.cut()
            elif reader.num_provisional >= num_alone:
                road.server = server
            assert news.finish is None or not news.provisional
    return reader


@pytest.mark.parametrize("kind", ["weaker", "same", "mixed"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_in_the_end_it_is_the_text_of_the_target(mode: Mode, kind: str) -> None:
    async def scene() -> None:
        async with serving(mode) as server:
            road = Road(server)
            async with road.device(kind, offline="draft") as device:
                reader = await read(road, device, wanted(provisional=True), 20)
            assert (reader.ids, reader.text) == undisturbed()
            assert reader.num_committed == 48
            assert reader.num_provisional >= 20
            assert (reader.num_replaced == 0) == (kind == "same")
            if kind == "same":  # what was drafted alone was sent as drafts
                assert server.core.counters.num_accepted_tokens >= 15

    play(scene())


def test_it_ends_alone_where_the_text_may_end_and_not_before_it_is_verified() -> None:
    async def scene() -> None:
        async with serving() as server:
            road = Road(server)
            order = wanted(provisional=True, stop=["e"])
            expected = await whole(Road(server), wanted(stop=["e"]))
            async with road.device("same", offline="draft") as device:
                reader = Reader()
                async with device.write(order) as writing:
                    road.server = None
                    road.cut()
                    async for news in writing:
                        assert news.finish is None or road.server is not None
                        reader.take(news)
                        if news.provisional and reader.text == expected:
                            await asyncio.sleep(0.05)  # nothing more comes
                            assert reader.num_provisional == len(reader.ids)
                            road.server = server
            assert reader.text == expected

    play(scene())


async def whole(road: Road, order: Request) -> str:
    async with road.device("none") as device, device.write(order) as writing:
        return "".join([news.text async for news in writing])


@pytest.mark.parametrize(
    ("offline", "provisional"), [("draft", False), ("wait", True)], ids=["not-asked", "wait"]
)
def test_who_cannot_take_replacements_waits(offline: str, provisional: bool) -> None:
    async def scene() -> None:
        async with serving() as server:
            road = Road(server)
            loop = asyncio.get_running_loop()
            async with (
                road.device(offline=offline) as device,  # type: ignore[arg-type]
                device.write(wanted(provisional=provisional)) as writing,
            ):
                news = []
                async for one in writing:
                    news.append(one)
                    if len(news) == 1:
                        road.server = None
                        road.cut()
                        back = loop.call_later(0.1, setattr, road, "server", server)
                assert back.when() <= loop.time()
            assert not any(one.provisional for one in news)
            assert "".join(one.text for one in news) == undisturbed()[1]

    play(scene())


def test_links_come_and_go_while_it_is_alone() -> None:
    """Twice without a link, with provisional tokens left over from the first time."""

    async def scene() -> None:
        async with serving("stop-and-wait") as server:
            road = Road(server)
            async with road.device("same", offline="draft") as device:
                reader, num_cuts = Reader(), 0
                async with device.write(wanted(provisional=True)) as writing:
                    async for news in writing:
                        reader.take(news)
                        if not news.provisional and num_cuts < 4:
                            num_cuts += 1
                            road.server = None
                            road.cut()
                        elif news.provisional and len(reader.ids) >= 8 * num_cuts:
                            road.server = server
                    assert (reader.ids, reader.text) == undisturbed()
            assert num_cuts == 4

    play(scene())


def test_lookup_cannot_say_what_its_tokens_mean() -> None:
    async def main() -> None:
        with pytest.raises(BadInput, match="--offline = draft"):
            await connect("127.0.0.1:9", DrafterOptions("lookup"), offline="draft")

    asyncio.run(main())
