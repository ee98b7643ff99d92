"""Replicas and a directory as processes of their own, kept by the test as a keeper would."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    write_replica_list,
)
from tests.faults.load import num_sessions
from tests.process import num_descriptors

TARGET = "chat"
START_S = 120.0


@dataclass
class Replica:
    name: str
    server: str  # HOST:PORT, the same for ever
    is_listed: bool = True
    process: subprocess.Popen[str] | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Cluster:
    """``costs`` is the file of the cost model that all replicas serve."""

    folder: Path
    costs: Path
    max_sessions: int
    context_length: int = 1024
    replicas: dict[str, Replica] = field(default_factory=dict)
    directory: str = ""  # its address
    _process: subprocess.Popen[str] | None = None
    _num_logs: int = 0

    @property
    def running(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.runs]

    @property
    def directory_descriptors(self) -> int:
        assert self._process is not None
        return num_descriptors(self._process.pid)

    def add(self) -> Replica:
        """One more, which is yet to be started."""
        name = f"{TARGET}-{len(self.replicas)}"
        self.replicas[name] = Replica(name, f"127.0.0.1:{_free_port()}")
        self._write_list()
        return self.replicas[name]

    def remove(self, replica: Replica) -> None:
        """It is none of the cluster's any more."""
        replica.is_listed = False
        self._write_list()

    def _write_list(self) -> None:
        listed = [replica for replica in self.replicas.values() if replica.is_listed]
        replicas = [ListedReplica(replica.name, TARGET, replica.server) for replica in listed]
        targets = [ListedTarget(TARGET, quality=1, watts=300.0, cost_per_hour=1.0)]
        write_replica_list(self.folder / "replicas.json", ReplicaList(targets, replicas))

    async def start_directory(self) -> None:
        path = str(self.folder / "replicas.json")
        self._process, self.directory = await self._spawn("directory", path, "--port", "0")

    async def start(self, replica: Replica) -> None:
        """Until it serves."""
        port = replica.server.rpartition(":")[2]
        size = ("--ctx-size", str(self.context_length), "--max-sessions", str(self.max_sessions))
        names = ("--name", replica.name, "--directory", self.directory)
        target = ("--target", f"cost:{self.costs}", "--port", port)
        replica.process, address = await self._spawn("serve", *target, *size, *names)
        assert address == replica.server

    async def drain(self, replica: Replica) -> None:
        """SIGTERM, as who keeps it sends; until it has ended."""
        assert replica.process is not None
        replica.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(replica.process.wait, START_S)
        _kill(replica.process)
        assert status == 0, f"{replica.name} ended with {status}"

    def kill(self, replica: Replica) -> None:
        assert replica.process is not None
        _kill(replica.process)

    async def until_all_serve(self) -> None:
        """As far as the directory knows."""
        async with asyncio.timeout(START_S):
            while set(await asyncio.to_thread(_conditions, self.directory)) != {"ok"}:
                await asyncio.sleep(0.1)

    async def sessions_left(self) -> int:
        """On all replicas, when everybody has gone."""
        left = -1
        for _ in range(100):
            counts = [asyncio.to_thread(num_sessions, r.server) for r in self.running]
            left = sum(await asyncio.gather(*counts))
            if left == 0:
                break
            await asyncio.sleep(0.1)
        return left

    async def descriptors_left(self, before: int) -> int:
        """More than ``before`` in the directory, when the last links have had time to close."""
        more = 1
        for _ in range(100):
            more = self.directory_descriptors - before
            if more <= 0:
                break
            await asyncio.sleep(0.1)
        return more

    def end(self) -> None:
        """All of them; nothing may have gone wrong unnoticed."""
        for process in (self._process, *(r.process for r in self.replicas.values())):
            if process is not None:
                _kill(process)
        for path in sorted(self.folder.glob("*.said")):
            told = path.read_text("utf-8", "replace")
            assert "Traceback" not in told, f"{path.name}: {told[-5000:]}"

    async def _spawn(self, command: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
        """A command of ours, and the address that it prints."""
        self._num_logs += 1
        with open(self.folder / f"{self._num_logs}-{command}.said", "w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "multispin", command, *arguments, "--log-level", "warning"],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            address = (await asyncio.to_thread(process.stdout.readline)).strip()
        assert address, f"multispin {command} did not start: {Path(said.name).read_text()[-2000:]}"
        return process, address


def _conditions(directory: str) -> list[str]:
    """Of the replicas on the list."""
    with urllib.request.urlopen(f"http://{directory}/api/cluster", timeout=10) as answer:
        return [replica["condition"] for replica in json.load(answer)["replicas"]]


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@asynccontextmanager
async def cluster_of(
    num_replicas: int, folder: Path, costs: Path, max_sessions: int
) -> AsyncIterator[Cluster]:
    """A directory that knows so many replicas, and all of them at work."""
    cluster = Cluster(folder, costs, max_sessions)
    try:
        replicas = [cluster.add() for _ in range(num_replicas)]
        await cluster.start_directory()
        await asyncio.gather(*map(cluster.start, replicas))
        await cluster.until_all_serve()
        yield cluster
    except BaseException:
        for path in sorted(folder.glob("*.said")):
            print(f"{path.name} said:", path.read_text("utf-8", "replace")[-2000:], file=sys.stderr)
        raise
    finally:
        cluster.end()
