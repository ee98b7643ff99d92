"""A device whose link ends: nothing more is computed for it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from multispin.net import server_link
from multispin.wire.frames import Tokenize, Tokens
from tests.net.raw import HELLO, RawDevice, Served, play, until, wanted

LONG = {"draft_length": 0, "max_tokens": 400}


def test_its_work_stops_with_the_pass_that_runs() -> None:
    async def scene(it: Served) -> None:
        engine, core = it.server.engine, it.server.core
        step, go_on, num_steps = engine.step, asyncio.Event(), [0]
        go_on.set()

        async def counted(batch):  # type: ignore[no-untyped-def]
            num_steps[0] += 1
            await go_on.wait()
            return await step(batch)

        engine.step = counted  # type: ignore[method-assign]
        device = await it.connect(HELLO)
        for session in range(3):
            await device.open(session, **LONG)
        await until(lambda: core.counters.num_committed_tokens > 10)
        go_on.clear()
        device.socket.transport.abort()
        await until(lambda: not it.server.links)
        begun = num_steps[0]
        go_on.set()
        await until(lambda: core.num_sessions == 0)
        await asyncio.sleep(0.05)
        assert num_steps[0] <= begun + 1
        assert core.num_detached == 3

    play(scene)


def test_a_session_that_it_never_heard_of_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(it: Served) -> None:
        engine, core = it.server.engine, it.server.core
        tokenize, go_on, num_begun = engine.tokenize, asyncio.Event(), [0]

        async def held(text, *, parse_special):  # type: ignore[no-untyped-def]
            num_begun[0] += 1
            await go_on.wait()
            return await tokenize(text, parse_special=parse_special)

        engine.tokenize = held  # type: ignore[method-assign]
        device = await it.connect(HELLO)
        for session in range(3):
            await device.send(wanted(session, **LONG))
        await until(lambda: num_begun[0] == 1)
        device.socket.transport.abort()
        await until(lambda: not it.server.links)
        go_on.set()
        await asyncio.sleep(0.05)
        assert core.num_sessions == core.num_detached == 0
        assert num_begun[0] == 1  # nor are the others begun
        assert core.counters.num_committed_tokens == 0
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]

    play(scene)


def test_what_a_device_may_have_waiting_is_bounded() -> None:
    """It sends a lot at once while the server is busy with its first message."""
    num_many = 5000

    async def scene(it: Served) -> None:
        engine = it.server.engine
        tokenize, go_on = engine.tokenize, asyncio.Event()

        async def held(text, *, parse_special):  # type: ignore[no-untyped-def]
            await go_on.wait()
            return await tokenize(text, parse_special=parse_special)

        engine.tokenize = held  # type: ignore[method-assign]
        device = await it.connect(HELLO)
        sending = asyncio.create_task(_send_many(device, num_many))
        [link] = it.server.links
        await until(lambda: link._num_waiting > server_link.MAX_WAITING)
        await asyncio.sleep(0.2)
        assert link._num_waiting < server_link.MAX_WAITING + 2000
        go_on.set()
        for number in range(num_many):
            assert (await device.expect(Tokens)).request == number
        await sending

    play(scene)


async def _send_many(device: RawDevice, num_many: int) -> None:
    for number in range(num_many):
        await device.send(Tokenize(number, "x"))
