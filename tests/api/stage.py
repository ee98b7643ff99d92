"""A server and a device agent in this process, on real sockets, with an engine that can be held."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette

from multispin.api.app import ServerState, create_app, create_device_app
from multispin.api.serving import address_of, bind, serve_app
from multispin.api.texts import DeviceTexts
from multispin.core.batch import BatchLimits
from multispin.core.engine import Batch, Engine, StepResult
from multispin.core.limits import ServerLimits
from multispin.lm.ngram import NgramModel
from multispin.net.device import Device
from multispin.net.drafting import DrafterOptions, connect
from multispin.net.engine_process import LocalEngine
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.types import Offline, TokenIds


class HeldEngine(LocalEngine):
    """Steps and tokenizes while it is let go, or as often as it is let."""

    def __init__(self, num_sequences: int, context_length: int, corpus: str | None) -> None:
        model = NgramModel.from_text(
            corpus, num_sequences=num_sequences, context_length=context_length
        )
        super().__init__(Engine(model, max_rows=64, reproducible=True))
        self.num_steps = 0  # that began
        self.num_tokenized = 0  # texts that came to be tokenized
        self.steps, self.tokenizes = asyncio.Event(), asyncio.Event()
        self.steps.set()
        self.tokenizes.set()

    async def step(self, batch: Batch) -> StepResult:
        self.num_steps += 1
        await asyncio.sleep(0)
        await self.steps.wait()
        return await super().step(batch)

    async def tokenize(self, text: str, *, parse_special: bool) -> TokenIds:
        self.num_tokenized += 1
        await self.tokenizes.wait()
        return await super().tokenize(text, parse_special=parse_special)


class Stage:
    """``addresses``: of the server, and of the device in front of it."""

    def __init__(self, engine: HeldEngine, server: EdgeServer, state: ServerState) -> None:
        self.engine = engine
        self.server = server
        self.state = state
        self.addresses: dict[str, str] = {}
        self.device: Device


def play(scene: Callable[[Stage], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), _stage(**settings) as stage:
            await scene(stage)

    asyncio.run(main())


@asynccontextmanager
async def _stage(
    *,
    num_sequences: int = 8,
    context_length: int = 1024,
    max_waiting: int = 256,
    num_places: int = 4,
    corpus: str | None = None,
    offline: Offline = "wait",
) -> AsyncIterator[Stage]:
    engine = HeldEngine(num_sequences, context_length, corpus)
    limits = ServerLimits(max_waiting=max_waiting, batch=BatchLimits(mode="stop-and-wait"))
    server = EdgeServer(engine, limits)  # type: ignore[arg-type]
    stage = Stage(engine, server, ServerState(server))
    async with served(create_app(stage.state), server.run()) as address:
        stage.addresses["server"] = address
        stage.device = await connect(address, DrafterOptions("lookup"), offline=offline)
        texts = DeviceTexts(stage.device, "lookup", num_places=num_places, draft_length=4)
        waiting = asyncio.Event().wait()
        async with served(create_device_app(texts, Telemetry()), waiting) as near:
            stage.addresses["device"] = near
            yield stage
        await stage.device.close()


@asynccontextmanager
async def served(app: Starlette, main: Awaitable[object], port: int = 0) -> AsyncIterator[str]:
    listening = bind("127.0.0.1", port)
    task = asyncio.ensure_future(main)
    serving = asyncio.create_task(serve_app(app, listening, task))
    await asyncio.sleep(0)
    try:
        yield address_of(listening)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


async def ask(
    address: str, *, path: str = "/v1/completions", **fields: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request by hand; how its client behaves from then on is the test's affair."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    wanted = {"model": "ngram", "prompt": "The phone drafts ", "max_tokens": 400, **fields}
    body = json.dumps(wanted).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
