"""Texts over links that are lost: the same as over one that is not, every token told once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any, get_args

import msgspec
import pytest

from multispin.core.device import Committed, DeviceSession
from multispin.core.drafter import LookupDrafter
from multispin.errors import PeerError
from multispin.net.device import Device, Request
from multispin.types import AcceptanceRule, Mode, Offline, SamplingParams
from tests.core.harness import request, write
from tests.net.road import Road, Stretch, serving
from tests.net.test_server import wanted


def play(scene: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await scene

    asyncio.run(main())


@functools.cache
def undisturbed(rule: AcceptanceRule = "coupled", seed: int = 7) -> tuple[list[int], str]:
    writer = write(request(rule=rule, seed=seed), "none")
    return writer.session.committed, writer.text


async def told(device: Device, order: Request) -> list[Committed]:
    async with device.write(order) as writing:
        return [committed async for committed in writing]


def joined(news: list[Committed]) -> tuple[list[int], str]:
    return [i for one in news for i in one.ids], "".join(one.text for one in news)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def cut_after(num_messages: int) -> Callable[[Stretch], None]:
    """Every link carries so many messages; hello and welcome not counted."""

    def prepare(stretch: Stretch) -> None:
        left = itertools.count(num_messages + 2, -1)
        stretch.passes = lambda: next(left) > 0  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("num_messages", range(6, 14))
def test_links_that_carry_a_few_messages_each(mode: Mode, num_messages: int) -> None:
    async def scene() -> None:
        async with serving(mode) as server:
            road = Road(server)
            async with road.device() as device:
                road.prepare = cut_after(num_messages)
                road.cut()
                assert joined(await told(device, wanted())) == undisturbed()
            assert len(road.stretches) > 3

    play(scene())


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_server_may_not_know_yet_that_the_link_is_gone(mode: Mode) -> None:
    async def scene() -> None:
        async with serving(mode) as server:
            road = Road(server)

            def prepare(stretch: Stretch) -> None:
                cut_after(9)(stretch)
                stretch.is_half_open = True

            road.prepare = prepare
            async with road.device() as device:
                assert joined(await told(device, wanted())) == undisturbed()
            assert len(road.stretches) > 3
            for stretch in road.stretches:  # keep-alives find out at last
                stretch.is_half_open = False
                stretch.cut()
            await until(lambda: not server._links)
            assert server.core.num_sessions == 0

    play(scene())


def test_the_server_that_has_the_session_goes_on_with_it() -> None:
    """And reads no prompt again."""

    async def scene() -> None:
        async with serving() as server:
            road, news = Road(server), []
            async with road.device() as device, device.write(wanted()) as writing:
                async for committed in writing:
                    news.append(committed)
                    if len(road.stretches) < 6:
                        road.cut()
            assert joined(news) == undisturbed()
            assert len(road.stretches) == 6
            assert server.engine.num_tokenized == 1  # type: ignore[attr-defined]

    play(scene())


@pytest.mark.parametrize("kind", ["none", "lookup", "weaker"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_another_server_goes_on_where_the_first_was(mode: Mode, kind: str) -> None:
    """As after a restart; in another mode, too."""

    async def scene() -> None:
        async with serving("window") as first, serving(mode) as second:
            road = Road(first)
            async with road.device(kind) as device, device.write(wanted()) as writing:
                news = []
                async for committed in writing:
                    news.append(committed)
                    if road.server is first:
                        road.server = second
                        road.cut()
                assert joined(news) == undisturbed()
            assert first.core.counters.num_committed_tokens < 40
            assert second.core.counters.num_committed_tokens > 8

    play(scene())


@pytest.mark.parametrize("rule", ["greedy", "coupled", "rejection"])
def test_under_every_rule_drafts_go_on_where_they_were(rule: AcceptanceRule) -> None:
    async def scene() -> None:
        async with serving("stop-and-wait") as server:
            road = Road(server)
            temperature = 0.0 if rule == "greedy" else 0.8
            order = wanted(rule=rule, params=SamplingParams(temperature=temperature))
            async with road.device("same") as device:
                road.prepare = cut_after(8)
                road.cut()
                ids, _ = joined(await told(device, order))
            assert len(ids) == 48
            assert server.core.counters.num_accepted_tokens > 5
            if rule != "rejection":  # whose text depends on what was drafted when
                expected = write(request(rule=rule, temperature=temperature), "none")
                assert ids == expected.session.committed

    play(scene())


def test_all_sessions_of_a_link_go_on_and_keep_their_drafters_sequences() -> None:
    freed: list[int] = []

    class Counting(LookupDrafter):
        def free(self, seq: int) -> None:
            freed.append(seq)

    async def scene() -> None:
        async with serving() as server:
            road = Road(server)
            async with road.device(drafter=Counting()) as device:
                road.prepare = cut_after(40)
                road.cut()
                texts = await asyncio.gather(*(told(device, wanted(seed=s)) for s in range(5)))
            for seed, news in enumerate(texts):
                assert joined(news) == undisturbed(seed=seed)
            assert sorted(freed) == [0, 1, 2, 3, 4]
            assert len(road.stretches) > 2

    play(scene())


def test_log_probabilities_are_told_once_for_each_token() -> None:
    async def scene() -> None:
        async with serving() as server:
            road = Road(server)
            async with road.device("none") as device:
                whole = await told(device, wanted(num_logprobs=0))
                road.prepare = cut_after(9)
                road.cut()
                pieces = await told(device, wanted(num_logprobs=0))
            assert len(road.stretches) > 3
            flat = [[p for one in news for p in one.logprobs] for news in (whole, pieces)]
            assert [p.id for p in flat[1]] == undisturbed()[0]
            assert flat[0] == flat[1]

    play(scene())


@pytest.mark.parametrize(
    ("what", "mode"),
    # One by one there is no next message to come first.
    [("twice", mode) for mode in get_args(Mode)] + [("swapped", "window")],
)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_messages_that_go_astray_cost_time_and_no_token(
    mode: Mode, what: str, direction: str
) -> None:
    async def scene() -> None:
        async with serving(mode) as server:
            road = Road(server)
            rng = random.Random(5)
            async with (
                road.device("same") as device,
                device.write(wanted(max_tokens=200)) as writing,
            ):
                stretch = road.stretches[-1]
                astray(stretch, what, direction, lambda: rng.random() < 0.1)
                news = [committed async for committed in writing]
                num_odd = stretch.num_odd  # type: ignore[attr-defined]
            expected = write(request(max_tokens=200), "none")
            assert joined(news) == (expected.session.committed, expected.text)
            assert num_odd > 2

    play(scene())


def astray(stretch: Stretch, what: str, direction: str, is_odd: Callable[[], bool]) -> None:
    """From now on some messages come twice, or after the next one."""
    stretch.num_odd = 0  # type: ignore[attr-defined]
    held: list[bytes] = []

    def bent(data: bytes) -> list[bytes]:
        if held:
            return [data, held.pop()]
        if not is_odd():
            return [data]
        stretch.num_odd += 1  # type: ignore[attr-defined]
        if what == "swapped":
            held.append(data)
            return []
        return [data, data]

    if direction == "up":
        send = stretch.send

        async def send_bent(data: bytes) -> None:
            for one in bent(data):
                await send(one)

        stretch.send = send_bent  # type: ignore[method-assign]
        return
    receive, waiting = stretch.receive, []

    async def receive_bent() -> bytes:
        while not waiting:
            try:
                async with asyncio.timeout(1.0 if held else None):
                    waiting.extend(bent(await receive()))
            except TimeoutError:  # there is no next one: it was the last
                waiting.append(held.pop())
        return waiting.pop(0)

    stretch.receive = receive_bent  # type: ignore[method-assign]


# --- other texts of the device -------------------------------------------------------------------


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_draft_may_end_or_go_on_at_any_moment(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the device learns from other texts decides when this one's draft is long enough."""
    is_hopeless = False
    monkeypatch.setattr(DeviceSession, "_is_hopeless", lambda self: is_hopeless)

    async def learn() -> None:
        nonlocal is_hopeless
        rng = random.Random(7)
        while True:
            is_hopeless = rng.random() < 0.3
            await asyncio.sleep(0)

    async def scene() -> None:
        async with serving(mode) as server:
            learning = asyncio.create_task(learn())
            async with Road(server).device("same") as device:
                news = await told(device, wanted(max_tokens=200))
            learning.cancel()
            expected = write(request(max_tokens=200), "none")
            assert joined(news) == (expected.session.committed, expected.text)

    play(scene())


# --- what does not go on -------------------------------------------------------------------------


def test_another_target_is_one_clear_error_until_the_right_one_is_back() -> None:
    async def scene() -> None:
        async with serving() as right, serving() as wrong:
            wrong.core.info = msgspec.structs.replace(wrong.core.info, target="other")
            road = Road(right)
            async with road.device() as device:
                with pytest.raises(PeerError, match="target other where it had ngram") as caught:
                    async with device.write(wanted()) as writing:
                        async for _ in writing:
                            road.server = wrong
                            road.cut()
                assert caught.value.code == "target_changed"
                with pytest.raises(PeerError, match="target other"):
                    await told(device, wanted())
                assert not device.line.is_up
                road.server = right
                await until(lambda: device.line.is_up)
                assert joined(await told(device, wanted())) == undisturbed()

    play(scene())


def test_who_will_not_wait_is_told_at_once_and_served_again_later() -> None:
    async def scene() -> None:
        async with serving() as server:
            road = Road(server)
            async with road.device(offline="fail") as device:
                with pytest.raises(PeerError) as caught:
                    async with device.write(wanted()) as writing:
                        async for _ in writing:
                            road.server = None
                            road.cut()
                assert caught.value.code == "unreachable"
                with pytest.raises(PeerError):
                    await told(device, wanted())
                road.server = server
                await until(lambda: device.line.is_up)
                assert joined(await told(device, wanted())) == undisturbed()

    play(scene())


@pytest.mark.parametrize("offline", ["wait", "fail"])
def test_a_device_that_is_closed_keeps_nobody_waiting(offline: Offline) -> None:
    async def scene() -> None:
        async with serving() as server:
            road = Road(server)
            async with road.device(offline=offline) as device:
                async with device.write(wanted()) as writing:
                    closing = asyncio.create_task(device.line.close())
                    with pytest.raises(PeerError, match="the link is closed"):
                        async for _ in writing:
                            await closing
                assert not device.line.is_up

    play(scene())


def test_texts_that_nobody_wants_any_more_leave_nothing_behind() -> None:
    async def scene() -> None:
        async with serving() as server:
            road = Road(server)
            async with road.device() as device:
                before = asyncio.all_tasks()
                async with device.write(wanted()) as writing:
                    async for _ in writing:
                        break
                    road.server = None
                    road.cut()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.1):
                            async for _ in writing:
                                pass
                assert len(device._free_seqs) == device._num_seqs
                await asyncio.sleep(0.01)
                left = {task for task in asyncio.all_tasks() - before if not task.done()}
                assert all("_serve" in repr(t) or "_speak" in repr(t) for t in left), left
            assert server.core.num_sessions == 0

    play(scene())


def test_who_is_cancelled_again_while_leaving_leaves_all_the_same() -> None:
    """The server hears of it, and the drafter's only sequence is free for the next text."""

    async def scene() -> None:
        async with serving("stop-and-wait") as server:
            road = Road(server)
            async with road.device("weaker") as device:
                writing = asyncio.create_task(told(device, wanted(max_tokens=400)))
                await until(lambda: server.core.counters.num_committed_tokens > 8)
                while not writing.done():
                    writing.cancel()
                    await asyncio.sleep(0)
                await until(lambda: server.core.num_sessions == 0)
                assert joined(await told(device, wanted())) == undisturbed()
            assert len(road.stretches) == 1

    play(scene())
