"""A server that is killed, and one that many use for long: the cost model, with n-gram texts."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.crowd import crowd
from tests.process import children_of, num_descriptors, resident_bytes, served

SOON_S = 2.0  # /health must tell by then
SAMPLE_S = 1.0


@contextmanager
def costs(pass_s: float) -> Iterator[Path]:
    """The file of a cost model whose passes take so long, whatever is in them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pass.toml"
        path.write_text(f"[cost]\nfixed_s = {pass_s}\n", "utf-8")
        yield path


@contextmanager
def cost_server(path: Path, num_sessions: int, port: int = 0) -> Iterator[tuple[int, str]]:
    """Process id and address."""
    size = ("--ctx-size", "1024", "--max-sessions", str(num_sessions))
    quiet = ("--log-level", "warning")
    with served("--target", f"cost:{path}", *size, *quiet, port=port) as (process, address):
        yield process.pid, address
        if port == 0:  # nobody was to kill it
            assert process.poll() is None, "the server has ended"


def health(address: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def num_sessions(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}/api/cell", timeout=10) as answer:
        return int(json.load(answer)["num_sessions"])


async def _health_turns(address: str, status: int) -> float:
    began = time.monotonic()
    while await asyncio.to_thread(health, address) != status:
        await asyncio.sleep(0.005)
        assert time.monotonic() - began < 60, f"/health never turns {status}"
    return time.monotonic() - began


async def kill_engines(num_kills: int, num_devices: int, seed: int) -> dict[str, object]:
    """The engine's process is killed again and again while texts are written."""
    rng = random.Random(seed)
    noticed, back = [], []
    with costs(0.02) as path, cost_server(path, num_devices) as (pid, address):
        async with crowd(address, num_devices, seed) as they:
            for _ in range(num_kills):
                before = they.num_tokens
                while they.num_tokens < before + 20 * num_devices:  # texts go on
                    they.check()
                    await asyncio.sleep(0.05)
                await asyncio.sleep(rng.uniform(0.0, 0.1))
                [child] = children_of(pid)
                os.kill(child, signal.SIGKILL)
                noticed.append(await _health_turns(address, 503))
                back.append(await _health_turns(address, 200))
            before = they.num_texts
            while they.num_texts < before + num_devices:
                they.check()
                await asyncio.sleep(0.05)
        left = await _settled(address)
    assert max(noticed) < SOON_S
    return {
        "kills": num_kills,
        "devices": num_devices,
        "texts": they.num_texts,
        "until_503_s_max": max(noticed),
        "until_200_s_median": statistics.median(back),
        "sessions_left": left,
    }


async def restart_server(num_restarts: int, num_devices: int, seed: int) -> dict[str, object]:
    """`kill -9` of the server under load, and a new one at the same address."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    waits: list[float] = []
    with ExitStack() as stack:
        path = stack.enter_context(costs(0.02))
        pid, address = stack.enter_context(cost_server(path, num_devices, port))
        it = crowd(address, num_devices, seed)
        they = await it.__aenter__()
        try:
            for _ in range(num_restarts):
                await they.until_all_have_written_since(loop.time())
                os.kill(pid, signal.SIGKILL)
                starting = cost_server(path, num_devices, port)
                pid, _ = await asyncio.to_thread(stack.enter_context, starting)
                listens = loop.time()
                await they.until_all_have_written_since(listens)
                waits += [at - listens for at in they.first_after]
        finally:
            await it.__aexit__(*sys.exc_info())
        left = await _settled(address)
    return {
        "restarts": num_restarts,
        "devices": num_devices,
        "texts": they.num_texts,
        "resumed_s_median": statistics.median(waits),
        "resumed_s_p95": statistics.quantiles(waits, n=20)[-1],
        "resumed_s_max": max(waits),
        "sessions_left": left,
    }


async def many_sessions(
    num_devices: int,
    seconds: float,
    seed: int,
    pass_s: float = 0.1,
    lengths: tuple[int, int] = (300, 900),  # texts begin at one a pass: the prompt's tokens
) -> dict[str, object]:
    """Random joins and leaves for a while. Growth is of the second half, between means over its
    first and last fifth."""
    with costs(pass_s) as path, cost_server(path, num_devices) as (pid, address):
        [child] = children_of(pid)
        descriptors = num_descriptors(pid)
        async with crowd(address, num_devices, seed, 0.3, lengths) as they:
            samples: list[tuple[int, int]] = []
            most = 0
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                await asyncio.sleep(SAMPLE_S)
                they.check()
                samples.append((resident_bytes(pid), resident_bytes(child)))
                most = max(most, await asyncio.to_thread(num_sessions, address))
        left = await _settled(address)
        descriptors_left = await _closed(pid, descriptors)
    return {
        "devices": num_devices,
        "seconds": seconds,
        "most_sessions": most,
        "texts": they.num_texts,
        "given_up": they.num_left,
        "tokens": they.num_tokens,
        "server_bytes": samples[-1][0],
        "server_growth_in_second_half": _growth([server for server, _ in samples]),
        "engine_growth_in_second_half": _growth([engine for _, engine in samples]),
        "sessions_left": left,
        "descriptors_left": descriptors_left,
    }


def _growth(samples: list[int]) -> float:
    half = samples[len(samples) // 2 :]
    fifth = max(len(half) // 5, 1)
    return statistics.fmean(half[-fifth:]) / statistics.fmean(half[:fifth]) - 1


async def _settled(address: str) -> int:
    """Sessions that are left when everybody has gone."""
    left = -1
    for _ in range(100):
        left = await asyncio.to_thread(num_sessions, address)
        if left == 0:
            break
        await asyncio.sleep(0.1)
    return left


async def _closed(pid: int, before: int) -> int:
    """File descriptors more than ``before``, when the last connections have had time to close."""
    more = 1
    for _ in range(100):
        more = num_descriptors(pid) - before
        if more <= 0:
            break
        await asyncio.sleep(0.1)
    return more
