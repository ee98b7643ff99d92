"""A device's endpoint while its server is gone, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from multispin.api.app import ServerState, create_app, create_device_app
from multispin.api.texts import DeviceTexts
from multispin.core.batch import BatchLimits
from multispin.core.limits import ServerLimits
from multispin.net.drafting import DrafterOptions, connect
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.types import Offline
from tests.api.conftest import get
from tests.api.stage import HeldEngine, ask, leave, served
from tests.core.harness import PROMPT, request, write

EXPECTED = write(request(max_tokens=200), "none").text
ORDER: dict[str, Any] = {
    **{"prompt": PROMPT, "max_tokens": 200, "temperature": 0.8, "seed": 7, "stream": True}
}


@asynccontextmanager
async def server_on(port: int) -> AsyncIterator[tuple[EdgeServer, int]]:
    limits = ServerLimits(batch=BatchLimits(mode="stop-and-wait"))
    server = EdgeServer(HeldEngine(8, 1024, None), limits)  # type: ignore[arg-type]
    async with served(create_app(ServerState(server)), server.run(), port) as address:
        yield server, int(address.rpartition(":")[2])


@asynccontextmanager
async def device_of(port: int, offline: Offline) -> AsyncIterator[str]:
    device = await connect(f"127.0.0.1:{port}", DrafterOptions("ngram"), offline=offline)
    texts = DeviceTexts(device, "ngram", num_places=4, draft_length=4)
    waiting = asyncio.Event().wait()
    async with served(create_device_app(texts, Telemetry()), waiting) as address:
        yield address
    await device.close()


async def health(address: str) -> tuple[str, dict[str, Any]]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    await leave(writer)
    return head.decode().split()[1], json.loads(body)


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    async for line in reader:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])
        elif line.startswith(b"data: [DONE]"):
            return


def text_of(chunks: list[dict[str, Any]]) -> str:
    """By the rules of docs/http.md."""
    text = ""
    for chunk in chunks:
        if "replaces" in chunk:
            text = text[: chunk["replaces"]["character"]]
        text += chunk["choices"][0]["text"]
    return text


@pytest.mark.parametrize("provisional", [True, False])
def test_a_stream_goes_on_over_a_server_that_is_started_again(provisional: bool) -> None:
    async def main() -> None:
        first = AsyncExitStack()
        server, port = await first.enter_async_context(server_on(0))
        async with asyncio.timeout(60), device_of(port, "draft") as address:
            reader, writer = await ask(address, **ORDER, provisional=provisional)
            news = events(reader)
            chunks = [await anext(news) for _ in range(3)]
            server.engine.steps.clear()  # type: ignore[attr-defined]
            await first.aclose()
            while (await health(address))[1]["link"] == "up":
                await asyncio.sleep(0.01)
            status, about = await health(address)
            assert (status, about["offline"]) == ("503", "draft")
            while provisional and len(text_of(chunks)) < len(EXPECTED) - 5:
                chunks.append(await anext(news))
            async with server_on(port):
                chunks += [chunk async for chunk in news]
                await leave(writer)
        alone = ["provisional" in chunk for chunk in chunks]
        assert any(alone) == provisional
        assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1])
        assert not alone[-1] and chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert text_of(chunks) == EXPECTED

    asyncio.run(main())


def test_who_does_not_wait_is_refused_until_the_server_is_back() -> None:
    async def main() -> None:
        first = AsyncExitStack()
        _, port = await first.enter_async_context(server_on(0))
        async with asyncio.timeout(60), device_of(port, "fail") as address:
            await first.aclose()
            while (await health(address))[1]["link"] == "up":
                await asyncio.sleep(0.01)
            reader, writer = await ask(address, **{**ORDER, "stream": False})
            assert b" 503 " in await reader.readline()
            answer = await reader.readuntil(b"}}")
            assert b"retry-after" in answer.lower() and b'"code":"unreachable"' in answer
            await leave(writer)
            [model] = (await asyncio.to_thread(get, address, "/v1/models"))["data"]
            assert model["link"] == "down"
            async with server_on(port):
                while (await health(address))[1]["link"] == "down":
                    await asyncio.sleep(0.01)
                reader, writer = await ask(address, **ORDER)
                assert text_of([chunk async for chunk in events(reader)]) == EXPECTED
                await leave(writer)

    asyncio.run(main())


def test_a_whole_answer_is_never_provisional(endpoint: str) -> None:
    async def main() -> None:
        reader, writer = await ask(endpoint, provisional=True)
        assert b" 400 " in await reader.readline()
        assert b"needs stream true" in await reader.readuntil(b"}}")
        await leave(writer)

    asyncio.run(main())
