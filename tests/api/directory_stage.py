"""A directory and replicas in this process, on real sockets, with engines that can be held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from multispin.api.app import ServerState, create_app
from multispin.api.directory_app import DirectoryState, create_directory_app
from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    write_replica_list,
)
from multispin.core.batch import BatchLimits
from multispin.core.limits import ServerLimits
from multispin.net.address import parse_address
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from tests.api.stage import HeldEngine, served, until

TARGET = ListedTarget("chat", quality=1)


class Replica:
    def __init__(self, name: str, num_sequences: int) -> None:
        self.name = name
        self.engine = HeldEngine(num_sequences, context_length=1024, corpus=None)
        limits = ServerLimits(batch=BatchLimits(mode="stop-and-wait"))
        self.telemetry = Telemetry()
        self.server = EdgeServer(self.engine, limits, observers=[self.telemetry])  # type: ignore[arg-type]
        self.address = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        state = ServerState(self.server, self.telemetry, name=self.name)
        async with served(create_app(state), self.server.run()) as self.address:
            yield


class Stage:
    """``address`` is the directory's, whose list is in ``file``."""

    def __init__(self, file: Path, replicas: dict[str, Replica]) -> None:
        self.file = file
        self.replicas = replicas
        self.address = ""
        self.listed: list[ListedReplica] = []
        self.state: DirectoryState

    def list(self, *names: str) -> None:
        """From now on these are the replicas."""
        self.listed = [ListedReplica(name, "chat", self.replicas[name].address) for name in names]
        write_replica_list(self.file, ReplicaList([TARGET], self.listed))

    @property
    def serving(self) -> list[str]:
        directory = self.state.directory
        return [r.listed.name for r in directory.replicas if r.condition == "ok"]


def play(scene: Callable[[Stage], Awaitable[None]], folder: Path, **settings: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), _stage(folder / "replicas.json", **settings) as stage:
            await scene(stage)

    asyncio.run(main())


@asynccontextmanager
async def _stage(
    file: Path, *, names: tuple[str, ...] = ("a", "b"), num_sequences: int = 4
) -> AsyncIterator[Stage]:
    stage = Stage(file, {name: Replica(name, num_sequences) for name in names})
    async with AsyncExitStack() as stack:
        for replica in stage.replicas.values():
            await stack.enter_async_context(replica.listening())
        stage.list(*names)
        stage.state = DirectoryState(file, parse_address)
        app = create_directory_app(stage.state)
        stage.address = await stack.enter_async_context(served(app, stage.state.watches.run()))
        await until(lambda: len(stage.serving) == len(names))
        yield stage
        await stage.state.proxy.close()
