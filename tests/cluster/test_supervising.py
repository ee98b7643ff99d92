"""The supervisor at work with real replicas and a directory, over TLS with tokens; no Ray."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from multispin.cell.deployment import Deployment, load_deployment
from multispin.cell.replica_list import ReplicaList
from multispin.cluster.charge import Charge
from multispin.cluster.keeper import Keeper, KeeperState
from multispin.cluster.overview import Overview
from multispin.cluster.supervising import Supervising
from tests.cluster.places import PATIENCE_S, free_ports

TEXT = """
[cluster]
name = "here"
ports = [{first}, {last}]
directory_ports = [{directory}]
cert = "server.pem"
key = "server.key"
ca = "ca.pem"
client_ca = "ca.pem"
tokens = "tokens.json"
token_file = "operate.token"

[[target]]
name = "chat"
model = "ngram"
max_sessions = 4
min_replicas = 2
serve = {{ drain_s = 0, policy = "heterogeneous" }}

[[cell]]
name = "north"
uplink_bits_per_s = 8e6
"""


class LocalFleet:
    """Keepers in this process, each of which does what is due whenever it is asked."""

    head = "127.0.0.1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, Keeper] = {}
        self.lock = threading.Lock()

    def keepers(self) -> dict[str, KeeperState]:
        with self.lock:
            for keeper in self.kept.values():
                keeper.step()
            return {name: keeper.state() for name, keeper in self.kept.items()}

    def start(self, charge: Charge) -> None:
        assert charge.name not in self.kept
        self.kept[charge.name] = Keeper(charge, self.folder, self.head, time.monotonic)

    def drain(self, name: str) -> None:
        self.kept[name].drain()

    def end(self, name: str) -> None:
        assert self.kept.pop(name).state().condition == "ended"

    def list_replicas(self, name: str, replicas: ReplicaList) -> None:
        self.kept[name].list_replicas(replicas)

    def end_all(self) -> None:
        for keeper in self.kept.values():
            keeper.drain()
        while any(state.condition != "ended" for state in self.keepers().values()):
            time.sleep(0.05)


def multispin(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "multispin", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def protected(folder: Path) -> Deployment:
    multispin(folder, "certs", ".", "--device", "phone")
    for name, scope in (("operate", "operate"), ("phone", "generate")):
        token = folder / f"{name}.token"
        token.touch(0o600)
        token.write_text(multispin(folder, "tokens", "add", name, "--scope", scope))
    first, last = free_ports(4)
    text = TEXT.format(directory=first, first=first + 1, last=last)
    (folder / "cluster.toml").write_text(text)
    return load_deployment(folder / "cluster.toml")


def complete(folder: Path, server: str) -> int:
    """A device's text by way of the directory; tokens that were written."""
    told = multispin(
        folder,
        *("complete", "Once upon", "--server", server, "--draft", "ngram", "--max-tokens", "16"),
        *("--ca", "ca.pem", "--cert", "phone.pem", "--key", "phone.key", "--cell", "north"),
        *("--token-file", "phone.token", "--json"),
    )
    return int(json.loads(told)["usage"]["completion_tokens"])


async def until_all_serve(supervising: Supervising) -> Overview:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await supervising.step()
            if not (overview := supervising.overview()).lacking():
                return overview
            await asyncio.sleep(0.1)


async def write_by_two_supervisors(deployment: Deployment, fleet: LocalFleet, at: Path) -> None:
    first = Supervising(deployment, fleet)
    before = await until_all_serve(first)
    [directory] = before.directories
    assert directory.startswith("https://127.0.0.1:")
    assert await asyncio.to_thread(complete, at, directory) == 16
    await first.close()
    second = Supervising(deployment, fleet)  # after the first one's death
    after = await until_all_serve(second)
    assert [row.keeper.pid for row in after.rows] == [row.keeper.pid for row in before.rows]
    assert {row.num_sessions for row in after.rows} == {0, None}
    await second.close()


def test_replicas_that_want_certificates_and_tokens_are_watched_and_found(tmp_path: Path) -> None:
    deployment = protected(tmp_path)
    fleet = LocalFleet(tmp_path / "run")
    try:
        asyncio.run(write_by_two_supervisors(deployment, fleet, tmp_path))
    finally:
        fleet.end_all()
