"""Server and devices over an in-memory transport, with the n-gram model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import get_args

import pytest

from multispin.core.batch import BatchLimits
from multispin.core.drafter import Drafter
from multispin.core.limits import ServerLimits
from multispin.errors import EngineLost, PeerError
from multispin.net.device import Device, Request
from multispin.net.engine_process import LocalEngine
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.observer import Observer
from multispin.net.server import EdgeServer
from multispin.net.transport import MemoryServerTransport, MemoryTransport, TransportClosed
from multispin.types import Mode, SamplingParams
from multispin.wire import frames
from multispin.wire.frames import (
    Close,
    Draft,
    Error,
    Hello,
    Open,
    PrefixDigest,
    Verdict,
    Welcome,
)
from tests.core.harness import PROMPT, new_drafter, new_engine, request, write

Scene = Callable[[EdgeServer], Awaitable[None]]


def play(
    scene: Scene,
    *,
    num_sequences: int = 4,
    mode: Mode = "window",
    observers: Sequence[Observer] = (),
) -> None:
    async def main() -> None:
        engine = LocalEngine(new_engine(num_sequences))
        limits = ServerLimits(batch=BatchLimits(max_rows=32, mode=mode))
        server = EdgeServer(engine, limits, observers=observers)
        running = asyncio.create_task(server.run())
        try:
            async with asyncio.timeout(30):
                await scene(server)
                await settled(server)
            assert not running.done(), running.exception()
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    asyncio.run(main())


async def settled(server: EdgeServer) -> None:
    """Nothing is left behind once every link is gone."""
    for _ in range(100):
        await asyncio.sleep(0.01)
        if server.core.num_sessions == 0 and not server._links:
            return
    raise AssertionError(f"{server.core.num_sessions} sessions, {len(server._links)} links left")


def dial(server: EdgeServer) -> MemoryTransport:
    near, far = MemoryTransport.pair()
    near.serving = asyncio.create_task(server.serve(far))  # type: ignore[attr-defined]
    return near


@contextlib.asynccontextmanager
async def device(
    server: EdgeServer, kind: str, observers: Sequence[Observer] = ()
) -> AsyncIterator[Device]:
    drafter: Drafter | None = new_drafter(kind)
    own = drafter.vocabulary if drafter else None
    link = await DeviceLink.greet(
        dial(server), kind, own.fingerprint if own else None, observers=observers
    )
    it = Device(Line(link), drafter)
    try:
        yield it
    finally:
        await it.close()


def wanted(seed: int = 7, **fields: object) -> Request:
    defaults: dict[str, object] = {
        "prompt": PROMPT,
        "params": SamplingParams(temperature=0.8),
        "rule": "coupled",
        "seed": seed,
        "max_tokens": 48,
        "draft_length": 4,
        "stop": [],
    }
    return Request(**{**defaults, **fields})  # type: ignore[arg-type]


async def text_of(it: Device, request: Request) -> tuple[list[int], str]:
    async with it.write(request) as writing:
        parts = [committed.text async for committed in writing]
        return writing.session.committed, "".join(parts)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_devices_of_every_kind_write_the_same_text_side_by_side(mode: Mode) -> None:
    expected = {seed: write(request(seed=seed), "none") for seed in range(3)}

    async def one(server: EdgeServer, kind: str, seed: int) -> None:
        async with device(server, kind) as it:
            ids, text = await text_of(it, wanted(seed))
            assert ids == expected[seed].session.committed
            assert text == expected[seed].text

    async def scene(server: EdgeServer) -> None:
        kinds = ["none", "lookup", "weaker", "same"]
        await asyncio.gather(*(one(server, k, s) for k in kinds for s in range(3)))

    # In rounds everybody past the prompt must fit into one pass.
    play(scene, mode=mode, num_sequences=4)


def test_one_link_carries_several_sessions() -> None:
    async def scene(server: EdgeServer) -> None:
        async with device(server, "lookup") as it:
            texts = await asyncio.gather(*(text_of(it, wanted(seed=s)) for s in range(5)))
            for seed, (ids, _) in enumerate(texts):
                assert ids == write(request(seed=seed), "none").session.committed

    play(scene)


def test_leaving_early_frees_the_session() -> None:
    async def scene(server: EdgeServer) -> None:
        async with device(server, "weaker") as it:
            async with it.write(wanted(max_tokens=400)) as writing:
                async for _ in writing:
                    break
            for _ in range(100):
                if server.core.num_sessions == 0:
                    break
                await asyncio.sleep(0.01)
            assert server.core.num_sessions == 0
            assert (await text_of(it, wanted()))[0] == write(request(), "none").session.committed

    play(scene)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (frames.encode(Hello(99, "x")), "version_mismatch"),
        (frames.encode(Hello(1, "qwen", "0000000000000000")), "vocabulary_mismatch"),
        (frames.encode(Close(1)), "out_of_order"),
        (b"GET / HTTP/1.1", "bad_frame"),
        (b"", "bad_frame"),
    ],
)
def test_a_wrong_greeting_ends_the_link_and_nobody_elses(first: bytes, code: str) -> None:
    async def scene(server: EdgeServer) -> None:
        async with device(server, "weaker") as bystander:
            writing = asyncio.create_task(text_of(bystander, wanted()))
            near = dial(server)
            await near.send(first)
            error = frames.decode_from_server(await near.receive())
            assert isinstance(error, Error)
            assert (error.session, error.code) == (None, code)
            with pytest.raises(TransportClosed):
                await near.receive()
            if code == "vocabulary_mismatch":
                assert "qwen" in error.message and "ngram" in error.message
            assert (await writing)[0] == write(request(), "none").session.committed

    play(scene)


def test_garbage_after_the_greeting_ends_the_link() -> None:
    async def scene(server: EdgeServer) -> None:
        near = dial(server)
        await near.send(frames.encode(Hello(1, "none")))
        assert isinstance(frames.decode_from_server(await near.receive()), Welcome)
        message = Open(0, PROMPT, SamplingParams(), "greedy", 1, 400, 0)
        await near.send(frames.encode(message))
        await near.receive()
        await near.send(b"\xc1")
        while True:
            frame = frames.decode_from_server(await near.receive())
            if isinstance(frame, Error):
                assert frame.code == "bad_frame"
                break

    play(scene)


def test_a_reader_that_stops_reading_is_cut_off_and_costs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multispin.net.server_link.MAX_UNSENT", 10_000)

    class Stuck(MemoryServerTransport):
        def write(self, data: bytes) -> None:
            self.num_unsent += len(data)

    async def scene(server: EdgeServer) -> None:
        stuck = Stuck()
        serving = asyncio.create_task(server.serve(stuck))
        stuck.receiver(frames.encode(Hello(1, "none")))
        for session in range(4):
            message = Open(session, PROMPT, SamplingParams(), "greedy", 1, 470, 0)
            stuck.receiver(frames.encode(message))
        async with device(server, "weaker") as it:
            assert (await text_of(it, wanted()))[0] == write(request(), "none").session.committed
        await asyncio.wait_for(serving, 10)
        assert stuck.num_unsent < 11_000

    play(scene)


def test_who_waits_for_the_sequence_of_one_that_is_cut_off_has_it_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is cut off when the server has nothing else to do; nobody would look for long."""
    monkeypatch.setattr("multispin.net.server_link.MAX_UNSENT", 0)
    monkeypatch.setattr("multispin.net.server.SWEEP_S", 1000.0)

    class Stuck(MemoryServerTransport):
        def write(self, data: bytes) -> None:
            is_verdict = isinstance(frames.decode_from_server(data), Verdict)
            self.num_unsent += is_verdict

    async def scene(server: EdgeServer) -> None:
        stuck = Stuck()
        serving = asyncio.create_task(server.serve(stuck))
        stuck.receiver(frames.encode(Hello(1, "lookup")))
        stuck.receiver(frames.encode(Open(0, PROMPT, SamplingParams(), "greedy", 1, 470, 4)))
        while server.core.num_sessions == 0:
            await asyncio.sleep(0)
        async with device(server, "none") as it:
            waiting = asyncio.create_task(text_of(it, wanted()))
            while server.core.num_sessions == 1:
                await asyncio.sleep(0)
            digest = PrefixDigest(PROMPT.encode()).digest()
            stuck.receiver(frames.encode(Draft(0, 0, len(PROMPT), digest, b"")))
            assert (await waiting)[0] == write(request(), "none").session.committed
        await serving

    play(scene, num_sequences=1, mode="stop-and-wait")


def test_what_the_server_refuses_is_raised_at_the_device() -> None:
    async def scene(server: EdgeServer) -> None:
        async with device(server, "weaker") as it:
            for fields, code in (
                ({"draft_length": 33}, "draft_too_long"),
                ({"prompt": "x" * 5000}, "context_overflow"),
                ({"stop": ["x"] * 17}, "bad_input"),
            ):
                with pytest.raises(PeerError) as caught:
                    await text_of(it, wanted(**fields))
                assert caught.value.code == code
            assert (await text_of(it, wanted()))[0] == write(request(), "none").session.committed

    play(scene)


def test_a_server_that_goes_away_is_an_error_at_the_device() -> None:
    async def scene(server: EdgeServer) -> None:
        async with (
            device(server, "weaker") as it,
            it.write(wanted(max_tokens=400)) as writing,
        ):
            with pytest.raises(PeerError) as caught:
                async for _ in writing:
                    for link in list(server._links):
                        link.close()
            assert caught.value.code == "unreachable"

    play(scene)


class DyingEngine(LocalEngine):
    """Loses its caches at every pass."""

    async def step(self, batch):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0)
        raise EngineLost("died")


def test_a_session_that_the_engine_never_survives_is_told() -> None:
    async def main() -> None:
        server = EdgeServer(DyingEngine(new_engine()), ServerLimits())
        running = asyncio.create_task(server.run())
        async with device(server, "none") as it:
            with pytest.raises(PeerError) as caught:
                await asyncio.wait_for(text_of(it, wanted()), 5)
        assert caught.value.code == "engine_failed"
        running.cancel()

    asyncio.run(main())


def test_a_server_that_never_answers_hello_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multispin.net.link.WELCOME_TIMEOUT_S", 0.05)

    async def main() -> None:
        near, _ = MemoryTransport.pair()
        with pytest.raises(PeerError) as caught:
            await DeviceLink.greet(near, "none", None)
        assert caught.value.code == "unreachable"

    asyncio.run(main())


def test_texts_that_hold_everybody_up_are_refused_unread() -> None:
    class Untouched(LocalEngine):
        async def tokenize(self, text: str, *, parse_special: bool):  # type: ignore[no-untyped-def]
            raise AssertionError("it was tokenized")

    async def main() -> None:
        server = EdgeServer(Untouched(new_engine()), ServerLimits())
        async with device(server, "none") as it:
            many = [frames.ChatMessage("u", "")] * 10_000
            for prompt in ("x" * 1_000_000, many):
                with pytest.raises(PeerError) as caught:
                    await text_of(it, wanted(prompt=prompt))
                assert caught.value.code == "context_overflow"
            with pytest.raises(PeerError) as caught:
                await (await it.line.link()).tokenize("x" * 300_000)
            assert caught.value.code == "bad_frame"

    asyncio.run(main())
