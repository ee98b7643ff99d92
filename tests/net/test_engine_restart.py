"""The engine's process dies while its file is broken: everybody waits, nothing is lost."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from multispin.core.batch import BatchLimits
from multispin.core.server import ServerLimits
from multispin.net import engine_process
from multispin.net.engine_process import EngineProcess
from multispin.net.loading import TargetOptions
from multispin.net.server import EdgeServer
from tests.net.raw import until
from tests.net.test_server import device, text_of, wanted

COSTS = "[cost]\nfixed_s = 0.01\n"


def options(file: Path) -> TargetOptions:
    return TargetOptions(f"cost:{file}", None, 4, 512, 1, 0, True, 64)


def play(scene, file: Path) -> None:  # type: ignore[no-untyped-def]
    async def main() -> None:
        file.write_text(COSTS)
        engine = EngineProcess(options(file))
        await engine.start()
        limits = ServerLimits(batch=BatchLimits(mode="stop-and-wait"))
        server = EdgeServer(engine, limits)
        running = asyncio.create_task(server.run())
        try:
            async with asyncio.timeout(60):
                await scene(engine, server)
            assert not running.done()
        finally:
            running.cancel()
            await engine.close()

    asyncio.run(main())


def test_a_text_waits_until_the_file_is_whole_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_process, "RESTART_DELAY_S", 0.01)
    monkeypatch.setattr(engine_process, "MAX_RESTART_DELAY_S", 0.02)
    file = tmp_path / "costs.toml"

    async def scene(engine: EngineProcess, server: EdgeServer) -> None:
        async with device(server, "weaker") as it:
            expected = await text_of(it, wanted())
            writing = asyncio.create_task(text_of(it, wanted()))
            committed = server.core.counters.num_committed_tokens
            await until(lambda: server.core.counters.num_committed_tokens > committed + 5)
            file.write_text("[cost]\nfixed_s = 'no'\n")
            engine._running.kill()
            with caplog.at_level(logging.ERROR):
                await until(lambda: len(caplog.records) >= 3)
            assert "fixed_s" in caplog.text and "tried again" in caplog.text
            assert not engine.ready and not writing.done()
            file.write_text(COSTS)
            assert await writing == expected
            assert engine.ready

    play(scene, file)


def test_another_model_in_the_files_place_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_process, "RESTART_DELAY_S", 0.01)
    file = tmp_path / "costs.toml"

    async def scene(engine: EngineProcess, server: EdgeServer) -> None:
        before = engine.info
        engine._options = msgspec.structs.replace(options(file), context_length=256)
        engine._running.kill()
        with caplog.at_level(logging.ERROR):
            await until(lambda: caplog.records)
        assert "another model" in caplog.text
        assert not engine.ready and engine.info == before
        engine._options = options(file)
        await until(lambda: engine.ready)

    play(scene, file)
