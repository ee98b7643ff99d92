"""A server that is stopped: nobody new, devices sent off with what they have, own texts may end."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from multispin.wire.frames import Error, Verdict
from tests.api.stage import ask, leave
from tests.net.raw import HELLO, RawDevice, Served, error_of, play, until, wanted

LONG = {"draft_length": 0, "max_tokens": 400}


async def answer(it: Served, path: str) -> tuple[int, dict[str, str], dict[str, object]]:
    reader, writer = await asyncio.open_connection(*it.host_and_port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {it.address}\r\n\r\n".encode())
    found = await whole(reader)
    await leave(writer)
    return found


async def whole(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], dict[str, object]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, json.loads(body)


async def all_frames(device: RawDevice) -> list[object]:
    found: list[object] = []
    while True:
        found.append(await device.receive())
        if isinstance(found[-1], Error):
            return found


def test_devices_are_sent_off_with_every_verdict_that_was_made() -> None:
    async def scene(it: Served) -> None:
        devices = [await it.connect(HELLO) for _ in range(3)]
        for device in devices:
            await device.open(**LONG)
        reading = [asyncio.create_task(all_frames(device)) for device in devices]
        await until(lambda: it.server.core.counters.num_committed_tokens > 60)
        await it.server.drain(5.0)
        told = 0
        for frames in await asyncio.gather(*reading):
            told += sum(f.num_committed for f in frames if isinstance(f, Verdict))
            error = frames[-1]
            assert isinstance(error, Error)
            assert (error.session, error.code, error.retry_after_s) == (None, "draining", 1.0)
        assert told == it.server.core.counters.num_committed_tokens
        assert {await device.close_code() for device in devices} == {1000}
        await it.is_empty()
        assert it.server.core.num_detached == 3

    play(scene)


def test_nobody_new_is_taken_in() -> None:
    async def scene(it: Served) -> None:
        assert (await answer(it, "/health"))[0] == 200
        await it.server.drain(5.0)
        status, _, document = await answer(it, "/health")
        assert (status, document) == (503, {"status": "draining"})
        device = await it.connect()
        assert (await error_of(device)).code == "draining"
        reader, writer = await ask(it.address)
        status, headers, document = await whole(reader)
        assert (status, document["error"]["code"]) == (503, "draining")  # type: ignore[index]
        assert int(headers["retry-after"]) >= 1
        await leave(writer)

    play(scene)


@pytest.mark.parametrize(("seconds", "ends"), [(20.0, True), (0.05, False)])
def test_texts_of_its_own_endpoint_may_end_if_they_do_soon(seconds: float, ends: bool) -> None:
    async def scene(it: Served) -> None:
        core = it.server.core
        if not ends:
            hold = asyncio.Event()
            step = it.server.engine.step

            async def slow(batch):  # type: ignore[no-untyped-def]
                if core.draining:
                    await hold.wait()
                return await step(batch)

            it.server.engine.step = slow  # type: ignore[method-assign]
        reader, writer = await ask(it.address, stream=True, max_tokens=300)
        await until(lambda: core.counters.num_committed_tokens > 10)
        draining = asyncio.create_task(it.server.drain(seconds))
        body = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 20)
        assert (b"[DONE]" in body) is ends
        assert (b"draining" in body) is not ends
        await draining
        await leave(writer)
        if not ends:
            hold.set()
        await it.is_empty()

    play(scene)


def test_the_first_signal_drains_and_the_second_ends_at_once() -> None:
    async def scene(it: Served) -> None:
        it.drain_s = 60.0
        reader, writer = await ask(it.address, stream=True, max_tokens=400)
        await until(lambda: it.server.core.counters.num_committed_tokens > 0)
        held = asyncio.Event()

        async def stuck(batch):  # type: ignore[no-untyped-def]
            await held.wait()

        it.server.engine.step = stuck  # type: ignore[assignment, method-assign]
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: it.server.core.draining)
        await asyncio.sleep(0.3)
        assert not it.serving.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(asyncio.wait({it.serving}), 10)
        assert b"[DONE]" not in await reader.read()
        await leave(writer)

    play(scene)


def test_a_session_that_was_sent_off_is_not_opened_anew_meanwhile() -> None:
    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        it.server.core.refuse_new(3.0)
        await device.send(wanted())
        error = await error_of(device)
        assert (error.session, error.code, error.retry_after_s) == (0, "draining", 3.0)

    play(scene)
