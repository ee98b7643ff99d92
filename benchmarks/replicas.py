"""What replicas bring, and what a directory in front of them costs.

    python benchmarks/replicas.py [--places 8] [--seconds 15] [--repeats 3]

*Throughput*, from one replica to two. Each has so many places for sessions, as the memory for keys
and values would allow, and a cost model of 30 ms for a pass, whatever is in it. Three times as many
devices as one replica has places, with prompt lookup as drafter, write one text after another, and
try again every second where all places are taken. The ceiling is twice the tokens. Replicas, the
directory and all devices share this machine's processors.

*Opening* a session by way of a directory, against the same replica directly, in turn: with links
that are up, and with everything still to be dialled. Then the time between two commits of running
texts, both ways: the directory is not on theirs.

*Placement*: processor time of a decision of the directory, and of the bare rule, at 1,000 replicas
with 100,000 sessions.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    write_replica_list,
)
from multispin.control.replicas import has_room, place, replica_seeds
from multispin.core.tenant import LOCAL
from multispin.errors import PeerError
from multispin.net.device import Device, Request
from multispin.net.directory import Directory
from multispin.net.drafting import DrafterOptions, connect
from multispin.types import SamplingParams
from multispin.wire.frames import PROTOCOL_VERSION, Find, Welcome
from multispin.wire.replica import Status

PASS_S = 0.030
END = 256  # the n-gram model's end of text
MAX_TOKENS = 600
SETTLE_S = 3.0  # of each run, that does not count
NUM_OPENED = 300
NUM_DIALLED = 40
NUM_STREAMS = 4
NUM_REPLICAS, NUM_SESSIONS, MAX_SESSIONS = 1000, 100_000, 200
NUM_DECISIONS = 20_000


# --- processes -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[str]:
    """A command of ours on loopback; its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "multispin", *arguments, "--port", "0", "--log-level", "warning"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def replica(folder: Path, places: int) -> AsyncIterator[str]:
    costs = folder / "pass.toml"
    costs.write_text(f"[cost]\nfixed_s = {PASS_S}\n", "utf-8")
    size = ("--max-sessions", str(places), "--ctx-size", "1024")
    async with started("serve", "--target", f"cost:{costs}", *size) as server:
        yield server


@contextlib.asynccontextmanager
async def directory(folder: Path, servers: Sequence[str]) -> AsyncIterator[str]:
    """Of these replicas, when it knows all of them."""
    path = folder / f"{len(servers)}.json"
    listed = [ListedReplica(f"chat-{i}", "chat", server) for i, server in enumerate(servers)]
    write_replica_list(path, ReplicaList([ListedTarget("chat")], listed))
    async with started("directory", str(path)) as address:
        await asyncio.sleep(2.0)
        yield address


# --- devices -------------------------------------------------------------------------------------


def order(number: int, max_tokens: int) -> Request:
    """A text that goes on until it is long enough."""
    params = SamplingParams(temperature=0.8, logit_bias={END: -100.0})
    prompt = f"Device {number}. The phone drafts and the server "
    return Request(prompt, params, "coupled", number, max_tokens, draft_length=8, stop=[])


async def dial(server: str) -> Device:
    return await connect(server, DrafterOptions("lookup"))


class Crowd:
    """Devices that write: ``commits`` are (when, tokens), ``gaps_s`` times between a text's."""

    def __init__(self) -> None:
        self.commits: list[tuple[float, int]] = []
        self.gaps_s: list[float] = []
        self.num_refused = 0

    async def write(self, server: str, num_devices: int, seconds: float) -> float:
        """Tokens per second, after those that settle."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._device(server, n)) for n in range(num_devices)]
            await asyncio.sleep(SETTLE_S + seconds)
            for task in tasks:
                task.cancel()
        first, last = began + SETTLE_S, began + SETTLE_S + seconds
        return sum(num for at, num in self.commits if first <= at < last) / seconds

    async def _device(self, server: str, number: int) -> None:
        device = await self._dialled(server)
        try:
            while True:
                number += 1000
                try:
                    await self._text(device, number)
                except PeerError as error:
                    await self._refused(error)
        finally:
            await device.close()

    async def _dialled(self, server: str) -> Device:
        while True:
            try:
                return await dial(server)
            except PeerError as error:
                await self._refused(error)

    async def _refused(self, error: PeerError) -> None:
        if error.code != "overloaded":
            raise error
        self.num_refused += 1
        await asyncio.sleep(error.retry_after_s)

    async def _text(self, device: Device, number: int) -> None:
        async with device.write(order(number, MAX_TOKENS)) as writing:
            last = None
            async for committed in writing:
                now = time.monotonic()
                self.commits.append((now, len(committed.ids)))
                if last is not None:
                    self.gaps_s.append(now - last)
                last = now


# --- the three measurements ----------------------------------------------------------------------


async def throughput(folder: Path, places: int, seconds: float, repeats: int) -> dict[str, Any]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    async with (
        replica(folder, places) as one,
        replica(folder, places) as other,
        directory(folder, [one]) as before,
        directory(folder, [one, other]) as after,
    ):
        for _ in range(repeats):
            for num, address in ((1, before), (2, after)):
                rates[num].append(await Crowd().write(address, 3 * places, seconds))
    ratios = [two / one_ for one_, two in zip(rates[1], rates[2], strict=True)]
    return {
        "places": places,
        "devices": 3 * places,
        "tokens_per_s_one": rates[1],
        "tokens_per_s_two": rates[2],
        "ratios": ratios,
        "ratio": float(np.median(ratios)),
    }


async def opening(folder: Path, seconds: float, repeats: int) -> dict[str, Any]:
    async with replica(folder, 64) as server, directory(folder, [server]) as address:
        ways = {"direct": server, "directory": address}
        opened: dict[str, list[float]] = {way: [] for way in ways}
        dialled: dict[str, list[float]] = {way: [] for way in ways}
        gaps: dict[str, list[float]] = {way: [] for way in ways}
        devices = {way: await dial(there) for way, there in ways.items()}
        for number in range(NUM_OPENED):
            for way, device in devices.items():
                opened[way].append(await open_s(device, number))
        for number in range(NUM_DIALLED):
            for way, there in ways.items():
                began = time.perf_counter()
                device = await dial(there)
                connected_s = time.perf_counter() - began
                dialled[way].append(connected_s + await open_s(device, NUM_OPENED + number))
                await device.close()
        for device in devices.values():
            await device.close()
        for _ in range(repeats):
            for way, there in ways.items():
                crowd = Crowd()
                await crowd.write(there, NUM_STREAMS, seconds / 3)
                gaps[way] += crowd.gaps_s
    return {
        "links_up": compared(opened),
        "dialling": compared(dialled),
        "between_commits": compared(gaps),
    }


async def open_s(device: Device, number: int) -> float:
    began = time.perf_counter()
    async with device.write(order(number, 2)) as writing:
        took_s = time.perf_counter() - began
        async for _ in writing:
            pass
    return took_s


def compared(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Milliseconds each way, and what the directory adds."""
    found = {}
    for name, percent in (("median", 50), ("p95", 95)):
        direct, by_way = (1e3 * float(np.percentile(seconds[way], percent)) for way in seconds)
        found |= {f"direct_ms_{name}": direct, f"directory_ms_{name}": by_way}
        found[f"added_ms_{name}"] = by_way - direct
    return found


def placement() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    names = [f"chat-{i}" for i in range(NUM_REPLICAS)]
    taken = rng.multinomial(NUM_SESSIONS, np.full(NUM_REPLICAS, 1 / NUM_REPLICAS))
    chooser = Directory()
    listed = [ListedReplica(name, "chat", f"10.0.0.1:{i + 1}") for i, name in enumerate(names)]
    chooser.use(ReplicaList([ListedTarget("chat")], listed))
    for name, num in zip(names, taken.tolist(), strict=True):
        chooser.news(name, status(name, num))
    finds = [Find(0, beginning) for beginning in map(rng.bytes, [8] * NUM_DECISIONS)]
    began = time.process_time()
    for find in finds:
        chooser.find(LOCAL, find)
    find_s = time.process_time() - began
    seeds, most = replica_seeds(names), np.full(NUM_REPLICAS, MAX_SESSIONS)
    began = time.process_time()
    for key in range(NUM_DECISIONS):
        place(key, seeds, has_room(taken, most))
    return {
        "replicas": NUM_REPLICAS,
        "sessions": NUM_SESSIONS,
        "find_us": 1e6 * find_s / NUM_DECISIONS,
        "rule_us": 1e6 * (time.process_time() - began) / NUM_DECISIONS,
    }


def status(name: str, num_sessions: int) -> Status:
    welcome = Welcome(
        version=PROTOCOL_VERSION,
        target="model",
        fingerprint="f",
        vocabulary_size=257,
        end_ids=[END],
        context_length=1024,
        max_draft_length=32,
        reproducible=True,
        mode="window",
    )
    return Status(
        name=name,
        condition="ok",
        welcome=welcome,
        num_sessions=num_sessions,
        max_sessions=MAX_SESSIONS,
        num_rows_waiting=0,
        s_per_verdict=PASS_S,
        goodput_tokens_per_s=0.0,
        num_committed_tokens=0,
        pass_fixed_s=PASS_S,
        pass_s_per_session=0.0,
        pass_s_per_row=0.0,
    )


# --- all of it -----------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    placed, grown, opened = result["placement"], result["throughput"], result["opening"]
    print(
        f"placement: {placed['find_us']:.1f} us a decision of the directory,"
        f" {placed['rule_us']:.1f} us of the bare rule"
    )
    print(f"throughput: {grown['ratio']:.2f} times from one replica to two; tokens/s in each run:")
    for num in ("one", "two"):
        print(f"  {num}: {', '.join(f'{rate:.0f}' for rate in grown[f'tokens_per_s_{num}'])}")
    for what, times in opened.items():
        print(
            f"{what.replace('_', ' ')}: direct {times['direct_ms_median']:.2f} ms (p95"
            f" {times['direct_ms_p95']:.2f}), by way of the directory"
            f" {times['directory_ms_median']:.2f} ({times['directory_ms_p95']:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print((__doc__ or "").split("\n\n", maxsplit=2)[2])
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder, seconds, repeats = Path(name), arguments.seconds, arguments.repeats
        result = {
            "benchmark": "replicas",
            "kind": "cost model",
            "pass_s": PASS_S,
            "load_average_before": load,
            "placement": placement(),
            "opening": asyncio.run(opening(folder, seconds, repeats)),
            "throughput": asyncio.run(throughput(folder, arguments.places, seconds, repeats)),
        }
    show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
