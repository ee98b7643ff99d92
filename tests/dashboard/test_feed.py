"""What viewers are sent: news that add up to everything, once for all, and nothing for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from multispin.api import dashboard_feed
from multispin.api.app import ServerState
from multispin.api.dashboard_drafts import RecentPositions
from multispin.api.dashboard_events import Row
from multispin.api.dashboard_feed import Feed, Logs
from multispin.api.errors import ApiError
from multispin.core.speculation import SpeculationStats
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from tests.net.test_server import device, play, text_of, wanted

TICK_S = 0.02


class Viewer:
    """An event stream into memory, and what a page makes of it."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.rows: dict[int, list[Any]] = {}
        self.texts: dict[int, str] = {}
        self.passes: list[list[float]] = []
        self.last: dict[str, Any] = {}
        self.comparison: dict[str, Any] = {"devices": []}
        self.has_ended = False
        self.reads = asyncio.Event()
        self.reads.set()

    async def start(self) -> None: ...

    async def send(self, document: bytes) -> None:
        await self.reads.wait()
        self._take(msgspec.json.decode(document))

    async def end(self) -> None:
        self.has_ended = True

    def _take(self, event: dict[str, Any]) -> None:
        self.kinds.append(event["kind"])
        if event["kind"] == "loading":
            return
        if event["kind"] == "all":
            self.rows, self.texts, self.passes = {}, {}, []
        self.last = event
        self.comparison = event.get("comparison", self.comparison)
        for number in event["left"]:
            del self.rows[number]
        self.rows |= {row[0]: row for row in event["devices"]}
        self.passes += event["passes"]
        for text in event["texts"]["news"] if "texts" in event else []:
            runs = "".join(run for _, run in text["runs"])
            self.texts[text["number"]] = self.texts.get(text["number"], "") + runs

    def knows(self, passes: list[list[float]]) -> tuple[Any, ...]:
        """All that it was told, of passes the last as many as ``passes``."""
        return self.rows, self.texts, self.comparison, self.passes[-len(passes) :]

    async def ticks(self, number: int) -> None:
        """Until so many more events have come."""
        number += len(self.kinds)
        while len(self.kinds) < number:
            await asyncio.sleep(TICK_S / 4)


class House:
    """A feed and those who watch it."""

    def __init__(self, server: EdgeServer | None, telemetry: Telemetry, logs: Logs) -> None:
        self.state = ServerState(server, telemetry, logs)
        self.feed = Feed(self.state)

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[Viewer]:
        viewer = Viewer()
        watching = asyncio.create_task(self.feed.send_to(viewer))  # type: ignore[arg-type]
        try:
            yield viewer
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_feed, "TICK_S", TICK_S)
    monkeypatch.setattr(dashboard_feed, "COMPARE_S", TICK_S)
    monkeypatch.setattr(dashboard_feed, "COMPARE_SHARE", 1.0)


def watch(scene: Callable[[House, EdgeServer], Awaitable[None]], *, texts: bool = True) -> None:
    telemetry, logs = Telemetry(), Logs(shows_texts=texts)

    async def played(server: EdgeServer) -> None:
        logs.attach(server.core)
        await scene(House(server, telemetry, logs), server)

    play(played, mode="stop-and-wait", observers=[telemetry, *logs.observers])


async def write_texts(server: EdgeServer, kind: str, seeds: range) -> list[str]:
    async with device(server, kind) as it:
        texts = [(await text_of(it, wanted(seed)))[1] for seed in seeds]
        await asyncio.sleep(3 * TICK_S)
    return texts


def test_news_add_up_to_everything() -> None:
    async def scene(house: House, server: EdgeServer) -> None:
        async with house.viewer() as early:
            jobs = [write_texts(server, kind, range(3)) for kind in ("weaker", "lookup")]
            writing = asyncio.gather(*jobs)
            await early.ticks(3)
            async with device(server, "weaker") as third, house.viewer() as late:
                await text_of(third, wanted())
                await asyncio.gather(writing, late.ticks(5))
                # One of the two may have heard of a tick that the other is about to hear of.
                while early.knows(late.passes) != late.knows(late.passes):
                    await asyncio.sleep(TICK_S / 4)
            assert late.rows and len(late.passes) > 10
            assert set(early.kinds[1:]) == set(late.kinds[1:]) == {"news"}
            assert early.kinds[0] == late.kinds[0] == "all"
            while early.rows:  # everybody leaves
                await early.ticks(1)
        written = {text for texts in await writing for text in texts}
        assert written <= set(early.texts.values())

    watch(scene)


def test_who_reads_slowly_gets_everything_again() -> None:
    async def scene(house: House, server: EdgeServer) -> None:
        async with house.viewer() as quick, house.viewer() as slow:
            await slow.ticks(2)
            slow.reads.clear()
            texts = await write_texts(server, "weaker", range(2))
            await quick.ticks(3)
            slow.reads.set()
            await slow.ticks(3)
            assert slow.kinds[:2] == ["all", "news"] and "all" in slow.kinds[2:]
            assert "all" not in quick.kinds[1:]
            assert set(texts) <= set(slow.texts.values())
            assert slow.rows == quick.rows

    watch(scene)


async def at_rest() -> set[asyncio.Task[Any]]:
    """The tasks that go on."""
    await asyncio.sleep(3 * TICK_S)
    return {task for task in asyncio.all_tasks() if not task.done()}


def test_nothing_is_done_while_nobody_watches() -> None:
    async def scene(house: House, server: EdgeServer) -> None:
        passes = house.state.logs.passes
        await write_texts(server, "weaker", range(1))
        assert passes.since(0) == (0, [])
        tasks = await at_rest()
        async with house.viewer() as viewer:
            await viewer.ticks(2)
            await write_texts(server, "weaker", range(1))
            assert passes.since(0)[0] > 0
            assert asyncio.all_tasks() > tasks
        assert await at_rest() == tasks
        assert passes.since(0) == (0, [])
        async with house.viewer() as again:  # the charts go on where they were
            await again.ticks(1)
            assert len(again.last["history"]) >= 3

    watch(scene)


def test_without_the_flag_no_text_is_kept_or_sent() -> None:
    async def scene(house: House, server: EdgeServer) -> None:
        async with house.viewer() as viewer:
            await write_texts(server, "weaker", range(1))
            await viewer.ticks(2)
        assert house.state.logs.texts is None and server.core.tell_commit is None
        assert "texts" not in viewer.last and viewer.texts == {}

    watch(scene, texts=False)


def test_the_rows_are_what_the_cell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_feed, "KEEP", 1.0)

    async def scene(house: House, server: EdgeServer) -> None:
        async with house.viewer() as viewer, device(server, "weaker") as it:
            await text_of(it, wanted(max_tokens=200))
            await viewer.ticks(3)
            [row] = viewer.rows.values()
            named = dict(zip(Row.__struct_fields__, row, strict=True))
            [link] = server.links
            stats = house.state.telemetry.devices[link.number].stats
            assert named["drafter"] == "weaker"
            assert named["num_committed_tokens"] == stats.num_committed_tokens == 200
            assert named["uplink_bytes"] == link.num_received > 0
            assert named["downlink_bytes"] == link.num_sent > 0
            pairs = zip(stats.accepted_at, stats.drafted_at, strict=True)
            assert named["positions"] == [round(100 * accepted / n) for accepted, n in pairs]
            assert named["judged_length"] == round(stats.num_draft_tokens / stats.num_drafts, 1)
            assert viewer.last["sums"]["num_committed_tokens"] == 200

    watch(scene)


def test_a_number_that_is_given_again_is_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_feed, "KEEP", 1.0)
    monkeypatch.setattr(dashboard_feed, "TICK_S", 0.5)

    async def scene(house: House, server: EdgeServer) -> None:
        async with house.viewer() as viewer:
            async with device(server, "weaker") as first:
                await text_of(first, wanted(max_tokens=100))
                await viewer.ticks(1)
            async with device(server, "lookup") as second:
                await text_of(second, wanted(max_tokens=20))
                await viewer.ticks(1)
                [(number, stats)] = [
                    (number, state.stats) for number, state in house.state.telemetry.devices.items()
                ]
                row = dict(zip(Row.__struct_fields__, viewer.rows[number], strict=True))
                assert (number, row["drafter"]) == (0, "lookup")
                assert len(row["positions"]) == len(stats.drafted_at)
                judged = round(stats.num_draft_tokens / stats.num_drafts, 1)
                assert row["judged_length"] == judged

    watch(scene)


def test_what_became_of_drafts_fades() -> None:
    stats = SpeculationStats()
    positions = RecentPositions(stats)
    stats.drafted_at, stats.accepted_at = [8, 4], [4, 1]
    positions.follow(0.5)
    assert (positions.percent, positions.mean_length) == ([50, 25], 1.5)
    stats.drafted_at, stats.accepted_at = [16, 4, 1], [12, 1, 1]
    positions.follow(0.5)
    # 4 + 8 drafts, of which 2 + 8 had their first token accepted; 2 were longer, one by far.
    assert (positions.percent, positions.mean_length) == ([83, 25, 100], 15 / 12)
    for _ in range(3):
        positions.follow(0.5)
    assert positions.percent == [83]


def test_plans_are_compared_while_devices_draft() -> None:
    async def scene(house: House, server: EdgeServer) -> None:
        async with house.viewer() as viewer:
            async with (
                device(server, "weaker") as it,
                it.write(wanted(max_tokens=400)) as writing,
            ):
                async for _ in writing:
                    if viewer.comparison["devices"]:
                        break
                found = viewer.comparison
            assert found["devices"] == [0]
            assert [plan["policy"] for plan in found["plans"]][:2] == [None, "heterogeneous"]
            assert found["plans"][0]["lengths"] == [4]  # as the device asks
            while viewer.comparison["devices"]:
                await viewer.ticks(1)

    watch(scene)


def test_a_model_that_is_loading_is_waited_for() -> None:
    async def scene(house: House, server: EdgeServer) -> None:
        house.state.server = None
        async with house.viewer() as viewer:
            await viewer.ticks(2)
            house.state.server = server
            await viewer.ticks(2)
        assert viewer.kinds[:2] == ["loading", "loading"]
        assert viewer.kinds[-2:] in (["all", "news"], ["loading", "all"], ["news", "news"])
        assert viewer.kinds.count("all") == 1

    watch(scene)


def test_viewers_are_counted_and_leave_when_the_server_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dashboard_feed, "MAX_VIEWERS", 2)

    async def scene(house: House, server: EdgeServer) -> None:
        async with house.viewer() as first, house.viewer() as second:
            await second.ticks(1)
            with pytest.raises(ApiError) as refused:
                await house.feed.send_to(Viewer())  # type: ignore[arg-type]
            assert refused.value.status == 503
            server.core.refuse_new(0.0)
            await asyncio.sleep(3 * TICK_S)
            assert first.has_ended and second.has_ended

    watch(scene)
