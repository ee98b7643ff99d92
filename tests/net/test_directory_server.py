"""A directory's port for devices: what they are told, and those that lie."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import websockets.exceptions
from msgspec.structs import replace

from multispin.api.directory_app import DirectoryState, create_directory_app
from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    write_replica_list,
)
from multispin.net import directory_server, links, offences
from multispin.net.address import parse_address
from multispin.wire import frames
from multispin.wire.frames import (
    Close,
    Error,
    Find,
    FromDevice,
    Hello,
    Redirect,
    Resume,
    Tokenize,
    Welcome,
    Wish,
)
from multispin.wire.padding import Packer, Unpacker
from tests.api.stage import served
from tests.net.fake_replica import WELCOME, FakeReplica, standing, until
from tests.net.raw import HELLO, RawDevice, wanted


class Port:
    """A directory that listens, and the replica behind it."""

    def __init__(self, state: DirectoryState, address: str, replica: FakeReplica) -> None:
        self.state = state
        self.address = address
        self.replica = replica

    async def connect(self, hello: FromDevice | None = HELLO) -> RawDevice:
        device = await RawDevice.connect(self.address)
        if hello is not None:
            await device.send(hello)
        return device

    async def welcome(self) -> RawDevice:
        device = await self.connect()
        await device.expect(Welcome)
        return device

    async def is_well(self) -> None:
        """Whoever is honest is served, and nothing is left of the others."""
        device = await self.welcome()
        await device.send(Find(4, b"beginning"))
        assert await device.receive() == Redirect(4, self.replica.address)
        await device.leave()
        await until(lambda: not self.state.server._links and not self.state.server._hellos)


def play(scene: Callable[[Port], Awaitable[None]], folder: Path, *, serves: bool = True) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), port(folder / "replicas.json") as it:
            if serves:
                await until(lambda: it.state.directory.serves)
            await scene(it)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def port(file: Path) -> AsyncIterator[Port]:
    async with standing(FakeReplica("a")) as replica:
        listed = ListedReplica("a", "chat", replica.address)
        write_replica_list(file, ReplicaList([ListedTarget("chat")], [listed]))
        state = DirectoryState(file, parse_address)
        async with served(create_directory_app(state), state.watches.run()) as address:
            yield Port(state, address, replica)


def test_hello_welcome_find_redirect(tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        device = await it.connect()
        assert await device.receive() == replace(WELCOME, is_directory=True)
        for session in (0, 7, 7):
            await device.send(Find(session, b"beginning"))
            assert await device.receive() == Redirect(session, it.replica.address)
        await device.send(Close(7))  # no answer
        await device.send(Find(8, b"", Wish("nobody")))
        refusal = await device.expect(Error)
        assert (refusal.session, refusal.code) == (8, "unknown_target")
        await it.replica.change(condition="draining")
        await until(lambda: not it.state.directory.serves)
        await device.send(Find(9, b""))
        refusal = await device.expect(Error)
        assert (refusal.session, refusal.code, refusal.retry_after_s) == (9, "loading", 1.0)
        await device.leave()
        await until(lambda: not it.state.server._links)
        answers = it.state.server.answers
        assert answers == {"welcome": 1, "redirect": 3, "unknown_target": 1, "loading": 1}

    play(scene, tmp_path)


def test_before_any_replica_is_known_it_is_loading(tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        it.state.directory.use(ReplicaList([ListedTarget("chat")], []))
        device = await it.connect()
        refusal = await device.expect(Error)
        assert (refusal.session, refusal.code, refusal.retry_after_s) == (None, "loading", 1.0)
        assert await device.close_code() == 1000

    play(scene, tmp_path)


def test_a_padded_link_is_padded(tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        device = await it.connect(Hello(1, "none", pads=True))
        assert (await device.expect(Welcome)).pads
        packer, unpacker = Packer(), Unpacker()
        parcels = [*packer.add(frames.encode(Find(1, b"beginning"))), *packer.rest()]
        for parcel in parcels:
            await device.socket.send(parcel)
        said: list[bytes] = []
        while not said:
            said += unpacker.feed(await device.socket.recv(decode=False))
        assert frames.decode_from_server(said[0]) == Redirect(1, it.replica.address)
        await device.leave()

    play(scene, tmp_path)


HELLOS: list[tuple[FromDevice, str]] = [
    (Hello(2, "none"), "version_mismatch"),
    (Hello(1, "small", "another print"), "vocabulary_mismatch"),
    (Close(0), "out_of_order"),
    (Find(0, b""), "out_of_order"),
]


@pytest.mark.parametrize(("hello", "code"), HELLOS)
def test_a_wrong_hello_ends_the_link(hello: FromDevice, code: str, tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        device = await it.connect(hello)
        refusal = await device.expect(Error)
        assert (refusal.session, refusal.code) == (None, code)
        assert await device.close_code() == 1000
        await it.is_well()

    play(scene, tmp_path)


def test_who_says_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "HELLO_TIMEOUT_S", 0.05)

    async def scene(it: Port) -> None:
        device = await it.connect(None)
        assert (await device.expect(Error)).code == "out_of_order"
        assert await device.close_code() == 1000

    play(scene, tmp_path)


OF_SESSIONS: list[FromDevice] = [
    wanted(3),
    Resume(3, b"token", 5, b"12345678"),
    frames.Draft(3, 0, 5, b"12345678", b""),
]


@pytest.mark.parametrize("message", OF_SESSIONS, ids=lambda message: type(message).__name__)
def test_it_serves_no_sessions_and_says_so(message: FromDevice, tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        device = await it.welcome()
        for _ in range(offences.MAX_OFFENCES):
            await device.send(message)
            refusal = await device.expect(Error)
            assert (refusal.session, refusal.code) == (3, "out_of_order")
        await device.send(message)
        await device.expect(Error)
        assert (await device.expect(Error)).code == "abusive"
        again = await it.connect(None)
        assert (await again.expect(Error)).code == "abusive"  # a new link does not help

    play(scene, tmp_path)


@pytest.mark.parametrize("message", [HELLO, Tokenize(0, "text"), Error(None, "x", "y")])
def test_what_is_out_of_place_ends_the_link(message: FromDevice, tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        device = await it.welcome()
        await device.send(message)
        assert (await device.expect(Error)).code == "out_of_order"
        assert await device.close_code() == 1000
        await it.is_well()

    play(scene, tmp_path)


def test_garbage_ends_the_link(tmp_path: Path) -> None:
    rng = random.Random(3)
    find = frames.encode(Find(1, b"12345678", Wish("chat", 1.0), "x:1", ["y:2"]))
    spoiled = [find[:cut] for cut in range(0, len(find), 5)]
    spoiled += [rng.randbytes(rng.randrange(1, 60)) for _ in range(20)]

    async def scene(it: Port) -> None:
        for number, data in enumerate(spoiled):
            it.state.server._peers.__init__(lambda: 0.0)  # type: ignore[misc]
            device = await it.welcome()
            await device.socket.send(data)
            refusal = await device.expect(Error)
            assert refusal.code in ("bad_frame", "out_of_order"), (number, data, refusal)
            assert await device.close_code() == 1000
        await it.is_well()

    play(scene, tmp_path)


def test_a_flood_is_held_back_and_a_peer_that_does_not_read_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offences, "MAX_FRAMES_PER_S", 200)

    async def scene(it: Port) -> None:
        device = await it.welcome()
        find = frames.encode(Find(1, b"beginning", Wish("n" * 2000)))

        async def flood() -> None:
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                while True:
                    await device.socket.send(find)

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(1.0)
        answered = sum(it.state.server.answers.values())
        assert answered < 800  # of as many as a socket takes in a second
        device.socket.transport.abort()
        flooding.cancel()
        await it.is_well()

    play(scene, tmp_path)


def test_what_is_too_large_to_be_a_question_ends_the_link_unread(tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        for large in (
            Find(1, b"beginning", avoid=[""] * directory_server.MAX_BYTES),
            Find(1, b"beginning", Wish("n" * directory_server.MAX_BYTES)),
        ):
            device = await it.welcome()
            await device.send(large)
            assert (await device.expect(Error)).code == "bad_frame"
        device = await it.connect(Hello(1, "n" * directory_server.MAX_BYTES))
        assert (await device.expect(Error)).code == "bad_frame"
        await it.is_well()

    play(scene, tmp_path)


def test_a_question_counts_for_more_than_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offences, "MAX_FRAMES_PER_S", 200)

    async def scene(it: Port) -> None:
        device = await it.welcome()
        await device.send(Find(1, b"beginning"))
        there = (await device.expect(Redirect)).server
        began = time.monotonic()
        for _ in range(60):  # not all at once: each is answered before the next comes
            await device.send(Find(1, b"beginning", last=there))
            await device.expect(Redirect)
        assert time.monotonic() - began > 1.5  # (60 x 10 - 200) / 200 = 2 s
        await device.leave()

    play(scene, tmp_path)


def test_when_it_stops_devices_are_sent_off(tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        device, silent = await it.welcome(), await it.connect(None)
        await asyncio.wait_for(it.state.drain(10.0), 5.0)
        for one in (device, silent, await it.connect(None)):
            refusal = await one.expect(Error)
            assert (refusal.code, refusal.retry_after_s) == ("draining", 1.0)
            assert await one.close_code() == 1000
        assert not it.replica.heard  # and the replica has nothing to do with it

    play(scene, tmp_path)


def test_many_finds_at_once_are_answered_in_order(tmp_path: Path) -> None:
    async def scene(it: Port) -> None:
        device = await it.welcome()
        finds: list[Any] = [Find(number, bytes([number])) for number in range(8)]
        for find in finds:
            await device.send(find)
        answers = [await device.receive() for _ in finds]
        assert [answer.session for answer in answers] == list(range(8))  # type: ignore[union-attr]

    play(scene, tmp_path)
