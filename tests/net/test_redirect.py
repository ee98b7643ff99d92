"""A replica beside a directory: who was not sent is sent there, and so is everybody in the end."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from multispin.core.engine import Batch, StepResult
from multispin.net.observer import Observer
from multispin.net.server import HAND_OVER_S
from multispin.types import Mode, TokenIds
from multispin.wire import frames
from multispin.wire.frames import Error, FromServer, Open, Opened, Redirect, Resume, Verdict
from tests.api.stage import ask, leave
from tests.net.raw import HELLO, RawDevice, Served, draft, play, served, until, wanted

DIRECTORY = "https://directory.example:8800"
LONG = {"draft_length": 0, "max_tokens": 400, "is_placed": True}
PASS_S = 0.005  # texts outlast what is done to them, however fast the machine


async def redirect_of(device: RawDevice, session: int = 0) -> None:
    assert await device.expect(Redirect) == Redirect(session, DIRECTORY)


def test_who_was_not_sent_here_is_sent_to_the_directory() -> None:
    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        for _ in range(20):  # none of which is an offence
            await device.send(wanted())
            await redirect_of(device)
        await device.open(1, is_placed=True)
        assert it.server.core.num_sessions == 1
        assert it.telemetry.num_sessions == 1
        assert not it.telemetry.refusals

    play(scene, directory=DIRECTORY)


def test_texts_of_its_own_endpoint_and_sessions_that_are_resumed_are_taken() -> None:
    async def scene(it: Served) -> None:
        reader, writer = await ask(it.address, stream=True, max_tokens=5)
        assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
        await leave(writer)
        device = await it.connect(HELLO)
        opened = await device.open(is_placed=True, max_tokens=400)
        prompt = frames.unpack_ids(opened.prompt_ids, 9, 512)
        device.socket.transport.abort()
        await until(lambda: it.server.core.num_detached)
        device = await it.connect(HELLO)
        digest = frames.PrefixDigest(prompt).digest()
        await device.send(Resume(5, opened.resume, len(prompt), digest))
        assert (await device.expect(Opened)).session == 5

    play(scene, directory=DIRECTORY)


def test_without_a_directory_everybody_is_taken() -> None:
    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        await device.open(0, is_placed=False)
        await device.open(1, is_placed=True)

    play(scene)


def slow_down(it: Served) -> None:
    """No pass takes less than PASS_S."""
    step = it.server.engine.step

    async def slowly(batch: Batch) -> StepResult:
        await asyncio.sleep(PASS_S)
        return await step(batch)

    it.server.engine.step = slowly  # type: ignore[method-assign]


class Redirects(Observer):
    """When there was one."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def down(self, device: int, frame: FromServer) -> None:
        if isinstance(frame, Redirect):
            self.at.append(time.monotonic())


async def write(it: Served, message: Open, other: Served | None = None) -> list[int]:
    """A text without drafts, to its end; where it is redirected it goes on at another server."""
    committed: list[int] = []
    prompt: TokenIds | None = None
    device = await it.connect(HELLO)
    await device.send(message)
    while True:
        match await device.receive():
            case Opened(prompt_ids=ids):
                prompt = frames.unpack_ids(ids, 9, 512)
            case Verdict() as verdict:
                assert prompt is not None
                assert verdict.start == len(prompt) + len(committed)  # none is lost, or told twice
                committed += [verdict.token][: verdict.num_committed]
                if verdict.finish:
                    await device.leave()
                    return committed
            case Redirect(server=server):
                assert other is not None and server == DIRECTORY
                packed = frames.pack_ids(committed, 9)
                device = await other.connect(HELLO)
                await device.send(msgspec.structs.replace(message, committed=packed))
            case frame:
                raise AssertionError(frame)


@pytest.mark.parametrize("mode", ["stop-and-wait", "window", "rounds"])
def test_a_drain_hands_over_one_by_one_and_loses_no_token(mode: Mode) -> None:
    texts = [
        wanted(0, seed=seed, draft_length=0, max_tokens=430, is_placed=True) for seed in range(5)
    ]

    async def scene(it: Served) -> None:
        async with served(mode) as other:
            alone = [await write(other, text) for text in texts]
            slow_down(it)
            redirects = Redirects()
            it.server._observers = [*it.server._observers, redirects]
            writing = [asyncio.create_task(write(it, text, other)) for text in texts]
            await until(lambda: it.server.core.counters.num_committed_tokens > 60)
            await it.server.drain(20.0)
            assert await asyncio.gather(*writing) == alone
            assert len(redirects.at) > 2  # who was not done before its turn came
            pairs = zip(redirects.at, redirects.at[1:], strict=False)
            assert min(later - at for at, later in pairs) > 0.5 * HAND_OVER_S
            assert it.server.core.num_detached == 0
            await it.is_empty()

    play(scene, mode, directory=DIRECTORY)


def test_a_device_that_is_handed_over_is_told_and_sent_off_at_the_end() -> None:
    """Whatever else it has sent by then, or sends."""

    async def scene(it: Served) -> None:
        slow_down(it)
        device = await it.connect(HELLO)
        opened = [await device.open(session, **LONG) for session in range(3)]
        drained = asyncio.create_task(it.server.drain(5.0))
        await until(lambda: it.server.core.draining)
        await device.send(wanted(7, is_placed=True))  # too late
        told = []
        while not told or isinstance(told[-1], Redirect):
            frame = await device.receive()
            if isinstance(frame, Redirect) and frame.session == 0:
                await device.send(draft(opened[0], [1, 2], session=frame.session))  # on its way
            if not isinstance(frame, Verdict):
                told.append(frame)
        assert {frame.session for frame in told} == {0, 1, 2, 7, None}
        assert isinstance(told[-1], Error) and told[-1].code == "draining"
        assert told[0] == Redirect(7, DIRECTORY)
        await drained
        assert it.telemetry.refusals == {"draining": 1}

    play(scene, directory=DIRECTORY)


def test_a_drain_is_over_in_time_and_texts_of_the_own_endpoint_have_it() -> None:
    async def scene(it: Served) -> None:
        slow_down(it)
        devices = [await it.connect(HELLO) for _ in range(8)]
        for device in devices:
            await device.open(**LONG)
        reader, writer = await ask(it.address, stream=True, max_tokens=50)
        await until(lambda: it.server.core.num_sessions == 9)
        draining = asyncio.create_task(it.server.drain(2.0))
        for device in devices:
            assert (await device.expect(Redirect)).server == DIRECTORY
        assert b"[DONE]" in await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 20)
        await leave(writer)
        await draining
        await it.is_empty()

    play(scene, directory=DIRECTORY)
