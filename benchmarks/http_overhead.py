"""What HTTP adds: to the time from a commit to its event, and to goodput with many streams.

    python benchmarks/http_overhead.py [--streams 32] [--seconds 8] [--repeats 3]

The target is a cost model, 30 ms for a pass of any number of rows, texts of the built-in n-gram
model. Each endpoint, the server's and a device's with a replayed drafter (320 tokens per second,
shared by its streams), writes texts in turn *directly*, taken in the endpoint's own process where
HTTP would begin, and *over HTTP*, taken as server-sent events by clients in another process on
loopback. A commit is stamped where its verdict is sent (server) or comes in (device); clients read
the same clock. Printed are the times from there to the application, and the ratio of the two
goodputs, which is 1 where HTTP costs nothing. The ceiling of goodput is a pass every 30 ms with a
row of each stream, times the acceptance length. Many commits of a pass come at once, and wait for
each other on their way out: the last one's event is as late as all others take.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multispin.api.app import ServerState, create_app, create_device_app
from multispin.api.serving import address_of, bind, serve_app
from multispin.api.texts import DeviceTexts, Texts
from multispin.bench.record import Prompt, record_texts
from multispin.bench.run import serving
from multispin.core.batch import BatchLimits
from multispin.core.engine import Engine
from multispin.core.limits import ServerLimits
from multispin.core.replay import ReplayDrafter
from multispin.lm.ngram import NgramModel
from multispin.lm.record import read_record, write_record
from multispin.net.address import parse_address
from multispin.net.device import Device, Request
from multispin.net.engine_process import start_engine
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.loading import TargetOptions
from multispin.net.observer import Observer
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.net.websocket import WebSocketTransport
from multispin.types import SamplingParams
from multispin.wire.frames import FromDevice, FromServer, Open, Verdict

PASS_S = 0.030
DRAFTED_TOKENS_PER_S = 320
MAX_TOKENS = 800
CONTEXT_LENGTH = 1024
SETTLE_S = 1.0  # of each run, that does not count


class Stamps(Observer):
    """When each text grew, by its seed: no two of a run have the same."""

    def __init__(self) -> None:
        self._seeds: dict[tuple[int, int], int] = {}
        self.commits: dict[int, list[tuple[float, int]]] = {}

    def up(self, device: int, frame: FromDevice) -> None:
        if isinstance(frame, Open):
            self._seeds[device, frame.session] = frame.seed
            self.commits[frame.seed] = []

    def down(self, device: int, frame: FromServer) -> None:
        if isinstance(frame, Verdict) and frame.num_committed:
            seed = self._seeds[device, frame.session]
            self.commits[seed].append((time.monotonic(), frame.num_committed))


class Host(NamedTuple):
    """One endpoint in this process."""

    texts: Texts
    address: str
    stamps: Stamps


class Figures(NamedTuple):
    """Of one run: seconds from each commit to the application, tokens per second, and processor
    time of the endpoint's process for each commit."""

    delays_s: np.ndarray
    goodput: float
    cpu_s: float


# --- the two endpoints ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def server_host(folder: Path, streams: int) -> AsyncIterator[Host]:
    stamps = Stamps()
    options = TargetOptions(
        target=f"cost:{folder / 'pass.toml'}",
        path=None,
        num_sequences=streams,
        context_length=CONTEXT_LENGTH,
        threads=1,
        gpu_layers=0,
        reproducible=False,
        max_rows=33 * streams,
    )
    engine = await start_engine(options)
    limits = ServerLimits(batch=BatchLimits(max_rows=options.max_rows))
    server = EdgeServer(engine, limits, observers=[stamps])
    state = ServerState(server)
    try:
        async with served(create_app(state), server.run()) as address:
            yield Host(state.texts, address, stamps)
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def device_host(folder: Path, streams: int) -> AsyncIterator[Host]:
    stamps = Stamps()
    target = ("--target", f"cost:{folder / 'pass.toml'}", "--ctx-size", str(CONTEXT_LENGTH))
    async with serving([*target, "--max-sessions", str(streams)]) as server:
        transport = await WebSocketTransport.connect(parse_address(server))
        link = await DeviceLink.greet(transport, "replay", None, observers=[stamps])
        drafter = ReplayDrafter(read_record(str(folder / "texts.record"), "the record"))
        device = Device(Line(link), drafter, draft_s_per_token=streams / DRAFTED_TOKENS_PER_S)
        texts = DeviceTexts(device, "replay", num_places=streams, draft_length=32)
        app = create_device_app(texts, Telemetry())
        async with served(app, asyncio.Event().wait()) as address:
            yield Host(texts, address, stamps)
        await device.close()


@contextlib.asynccontextmanager
async def served(app: Any, main: Any) -> AsyncIterator[str]:
    listening = bind("127.0.0.1", 0)
    task = asyncio.ensure_future(main)
    serving_ = asyncio.create_task(serve_app(app, listening, task))
    await asyncio.sleep(0.1)
    try:
        yield address_of(listening)
    finally:
        task.cancel()
        await serving_


HOSTS = {"server": server_host, "device": device_host}


# --- the two ways --------------------------------------------------------------------------------


async def directly(host: Host, prompts: Sequence[str], seeds: range, seconds: float) -> Figures:
    taken: dict[int, list[float]] = {}

    async def write(prompt: str, mine: Iterator[int]) -> None:
        for seed in mine:
            rule = "greedy"
            draft_length = host.texts.draft_length
            params = SamplingParams()
            request = Request(prompt, params, rule, seed, MAX_TOKENS, draft_length, [])
            times = taken.setdefault(seed, [])
            async with host.texts.write(request) as writing:
                async for committed in writing:
                    if committed.text:
                        times.append(time.monotonic())

    began, cpu_s = time.monotonic(), time.process_time()
    writing = [
        asyncio.create_task(write(prompt, iter(seeds[i :: len(prompts)])))
        for i, prompt in enumerate(prompts)
    ]
    await asyncio.sleep(seconds)
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
    return figures(host.stamps, taken, began, seconds, time.process_time() - cpu_s)


async def over_http(host: Host, prompts: Sequence[str], seeds: range, seconds: float) -> Figures:
    job = {
        "address": host.address,
        "model": host.texts.target,
        "prompts": prompts,
        "seeds": [seeds.start, seeds.stop],
        "seconds": seconds,
    }
    cpu_s = time.process_time()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--client"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(json.dumps(job).encode())
    answer = json.loads(output)
    taken = {int(seed): times for seed, times in answer["taken"].items()}
    cpu_s = time.process_time() - cpu_s
    return figures(host.stamps, taken, answer["began"], seconds, cpu_s)


def figures(
    stamps: Stamps, taken: dict[int, list[float]], began: float, seconds: float, cpu_s: float
) -> Figures:
    """Over what was committed after the first second."""
    delays, num_tokens, num_commits = [], 0, 0
    first, last = began + SETTLE_S, began + seconds
    for seed, times in taken.items():
        commits = stamps.commits.get(seed, [])
        num_commits += len(commits)
        num_tokens += sum(num for at, num in commits if first <= at < last)
        # A commit has one event; the last of a text that was left may be without.
        delays += [
            arrived - at
            for (at, _), arrived in zip(commits, times, strict=False)
            if first <= at < last
        ]
    goodput = num_tokens / (seconds - SETTLE_S)
    return Figures(np.array(delays), goodput, cpu_s / num_commits)


# --- clients, in a process of their own ----------------------------------------------------------


async def client(job: dict[str, Any]) -> dict[str, Any]:
    taken: dict[int, list[float]] = {}
    host, _, port = job["address"].rpartition(":")

    async def read(prompt: str, mine: Iterator[int]) -> None:
        for seed in mine:
            times = taken.setdefault(seed, [])
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(post(job, prompt, seed))
                while b"[DONE]" not in (event := await reader.readuntil(b"\n\n")):
                    if b'"finish_reason":null' in event:
                        times.append(time.monotonic())
            finally:
                writer.close()

    began = time.monotonic()
    seeds = range(*job["seeds"])
    prompts = job["prompts"]
    reading = [
        asyncio.create_task(read(prompt, iter(seeds[i :: len(prompts)])))
        for i, prompt in enumerate(prompts)
    ]
    await asyncio.sleep(job["seconds"])
    for task in reading:
        task.cancel()
    failed = [e for e in await asyncio.gather(*reading, return_exceptions=True) if e]
    assert all(isinstance(error, asyncio.CancelledError) for error in failed), failed
    return {"began": began, "taken": taken}


def post(job: dict[str, Any], prompt: str, seed: int) -> bytes:
    fields = {"model": job["model"], "prompt": prompt, "seed": seed}
    body = json.dumps({**fields, "max_tokens": MAX_TOKENS, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {job['address']}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


# --- all of it -----------------------------------------------------------------------------------


def write_texts(folder: Path, num_texts: int) -> list[str]:
    """The record, the cost model that writes it, and the prompts."""
    engine = Engine(NgramModel.from_text(num_sequences=8, context_length=1024), max_rows=64)
    drafter = NgramModel.from_text(order=3, num_sequences=33, context_length=1024)
    prompts = [f"Device {chr(65 + i % 26)}{i} " for i in range(num_texts)]
    read = [Prompt(text, engine.tokenize(text, parse_special=False)) for text in prompts]
    record = record_texts(engine, drafter, "ngram", read, MAX_TOKENS, lambda line: None)
    write_record(folder / "texts.record", record)
    costs = f'[cost]\nfixed_s = {PASS_S}\nrecord = "texts.record"\n'
    (folder / "pass.toml").write_text(costs, "utf-8")
    return prompts


async def measure(
    kind: str, folder: Path, prompts: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    blocks = (range(n * 100_000, (n + 1) * 100_000) for n in itertools.count())
    pairs = []
    async with HOSTS[kind](folder, arguments.streams) as host:
        one = await over_http(host, prompts[:1], next(blocks), arguments.seconds)
        one_direct = await directly(host, prompts[:1], next(blocks), arguments.seconds)
        for _ in range(arguments.repeats):
            direct = await directly(host, prompts, next(blocks), arguments.seconds)
            http = await over_http(host, prompts, next(blocks), arguments.seconds)
            pairs.append((direct, http))
    ratios = [http.goodput / direct.goodput for direct, http in pairs]
    all_direct = np.concatenate([direct.delays_s for direct, _ in pairs])
    all_http = np.concatenate([http.delays_s for _, http in pairs])
    return {
        "endpoint": kind,
        "one_stream": delays(one_direct.delays_s, one.delays_s),
        "all_streams": delays(all_direct, all_http),
        "cpu_us_direct": 1e6 * float(np.median([direct.cpu_s for direct, _ in pairs])),
        "cpu_us_http": 1e6 * float(np.median([http.cpu_s for _, http in pairs])),
        "goodput_direct": float(np.median([direct.goodput for direct, _ in pairs])),
        "goodput_http": float(np.median([http.goodput for _, http in pairs])),
        "goodput_ratio": float(np.median(ratios)),
        "goodput_ratios": ratios,
    }


def delays(direct: np.ndarray, http: np.ndarray) -> dict[str, float]:
    """Milliseconds from a commit to the application."""
    result = {}
    for name, values in (("direct", direct), ("http", http)):
        for percent in (50, 99):
            result[f"{name}_ms_p{percent}"] = 1e3 * float(np.percentile(values, percent))
    result["added_ms_p50"] = result["http_ms_p50"] - result["direct_ms_p50"]
    return result


def show(case: dict[str, Any], streams: int) -> None:
    for name, num in (("one_stream", 1), ("all_streams", streams)):
        times = case[name]
        print(
            f"{case['endpoint']:8}{num:4} streams: commit to application, p50 / p99:"
            f" direct {times['direct_ms_p50']:.2f} / {times['direct_ms_p99']:.2f} ms,"
            f" over HTTP {times['http_ms_p50']:.2f} / {times['http_ms_p99']:.2f} ms",
            flush=True,
        )
    print(
        f"{case['endpoint']:8}{streams:4} streams: goodput {case['goodput_http']:.0f} tokens/s over"
        f" HTTP, {case['goodput_direct']:.0f} directly, ratio {case['goodput_ratio']:.3f};"
        f" processor {case['cpu_us_http']:.0f} and {case['cpu_us_direct']:.0f} us a commit",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(asyncio.run(client(json.load(sys.stdin)))))
        return
    print(__doc__.split("\n\n", maxsplit=2)[2])
    cases = []
    with tempfile.TemporaryDirectory() as name:
        prompts = write_texts(Path(name), arguments.streams)
        for kind in HOSTS:
            cases.append(asyncio.run(measure(kind, Path(name), prompts, arguments)))
            show(cases[-1], arguments.streams)
    result = {"benchmark": "http_overhead", "kind": "cost model", "streams": arguments.streams}
    print(json.dumps({**result, "pass_s": PASS_S, "cases": cases}))


if __name__ == "__main__":
    main()
