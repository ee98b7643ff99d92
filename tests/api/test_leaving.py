"""A client that goes away frees its session within one batch, whenever it goes."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.stage import Stage, ask, leave, play, until

ENDPOINTS = ("server", "device")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_while_its_text_is_written(endpoint: str, stream: bool) -> None:
    async def scene(stage: Stage) -> None:
        engine, core = stage.engine, stage.server.core
        _, writer = await ask(stage.addresses[endpoint], stream=stream, n=2)
        await until(lambda: core.counters.num_committed_tokens > 10)
        engine.steps.clear()
        await until(lambda: core.num_sessions == 2 and bool(core._running))
        num_steps = engine.num_steps
        await leave(writer)
        await asyncio.sleep(0.05)
        engine.steps.set()
        await until(lambda: core.num_sessions == 0)
        assert engine.num_steps <= num_steps + 1

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_before_its_first_token(endpoint: str, stream: bool) -> None:
    async def scene(stage: Stage) -> None:
        engine, core = stage.engine, stage.server.core
        engine.steps.clear()
        _, writer = await ask(stage.addresses[endpoint], stream=stream)
        await until(lambda: engine.num_steps == 1)
        await leave(writer)
        await asyncio.sleep(0.05)
        assert core.num_sessions == 1  # in the batch that is running
        engine.steps.set()
        await until(lambda: core.num_sessions == 0)
        await asyncio.sleep(0.05)
        assert engine.num_steps == 1
        assert core.counters.num_committed_tokens == 0

    play(scene)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_while_its_prompt_is_tokenized(endpoint: str) -> None:
    async def scene(stage: Stage) -> None:
        engine, core = stage.engine, stage.server.core
        engine.tokenizes.clear()
        _, writer = await ask(stage.addresses[endpoint])
        await until(lambda: engine.num_tokenized == 1)
        await leave(writer)
        await asyncio.sleep(0.05)
        engine.tokenizes.set()
        await asyncio.sleep(0.05)
        await until(lambda: core.num_sessions == 0)
        assert engine.num_steps <= 1
        assert core.counters.num_committed_tokens <= 1

    play(scene)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_while_it_waits_for_a_place(endpoint: str) -> None:
    async def scene(stage: Stage) -> None:
        core = stage.server.core
        address = stage.addresses[endpoint]
        stage.engine.steps.clear()
        clients = [await ask(address, stream=True, max_tokens=20) for _ in range(3)]
        await until(lambda: core.num_sessions == (3 if endpoint == "server" else 1))
        for _, writer in clients[1:]:
            await leave(writer)
        await until(lambda: core.num_sessions == 1)
        stage.engine.steps.set()
        await clients[0][0].readuntil(b"[DONE]")
        await leave(clients[0][1])
        assert core.num_sessions == 0

    play(scene, num_sequences=1, num_places=1)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_many_come_and_go_and_nothing_stays(endpoint: str) -> None:
    async def scene(stage: Stage) -> None:
        core, address = stage.server.core, stage.addresses[endpoint]
        for round_ in range(10):
            clients = [await ask(address, stream=i % 2 == 0, n=1 + i % 2) for i in range(6)]
            await asyncio.sleep(0.003 * round_)
            await asyncio.gather(*(leave(writer) for _, writer in clients))
        await until(lambda: core.num_sessions == 0)
        reader, writer = await ask(address, max_tokens=5)
        assert b" 200 " in await reader.readline()
        await leave(writer)
        await until(lambda: len(stage.server._links) == 1)  # the device's own
        assert len(stage.device._free_seqs) == stage.device._num_seqs

    play(scene)
