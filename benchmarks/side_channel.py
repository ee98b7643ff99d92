"""What does a link tell to whoever watches it, and what does padding cost?

    python benchmarks/side_channel.py TARGET [--draft ngram] [--prompts 50] [--recordings 4]
        [--tokens 48] [--stop] [--temperature 0.3] [--at-once 4]

Fifty prompts are written several times, each time with another seed, over a real socket from a real
server. At the device every message is recorded as a watcher sees it through TLS: when, which way,
how many bytes. A classifier that has seen all other recordings then says which prompt one belongs
to: the nearest neighbour, or the nearest mean of a prompt's recordings; by the first message each
way, by how a text opens, by the sizes of what follows, by times, or by all of these; the best of
the ten counts. The floor is chance: one in as many as there are prompts. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from multispin.cli.prompts import human_eval
from multispin.net.address import parse_address
from multispin.net.device import Device, Request
from multispin.net.drafting import DrafterOptions, _load, _ngram
from multispin.net.line import Line
from multispin.net.link import DeviceLink
from multispin.net.transport import Transport
from multispin.net.websocket import WebSocketTransport
from multispin.types import SamplingParams

NUM_STEPS = 48  # messages each way, of which a watcher looks at each by itself
UP, DOWN = 0, 1
OPENING_S = 0.04  # less than the pace of a padded link
KINDS = ("first", "opening", "sizes", "times", "all")
SILENCE_S = 0.3  # a text has ended when nothing was seen for so long

Features = npt.NDArray[np.float64]


class Watched:
    """A transport, and what can be seen of it: seconds, direction, bytes."""

    def __init__(self, inner: Transport, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seen: list[tuple[float, int, int]] = []
        self._inner = inner
        self._clock = clock

    async def send(self, data: bytes) -> None:
        self.seen.append((self._clock(), UP, len(data)))
        await self._inner.send(data)

    async def receive(self) -> bytes:
        data = await self._inner.receive()
        self.seen.append((self._clock(), DOWN, len(data)))
        return data

    async def close(self) -> None:
        await self._inner.close()


@dataclasses.dataclass
class Recording:
    """One text: what was seen from its opening on, and what the device had of it."""

    prompt: int
    seen: list[tuple[float, int, int]]
    num_tokens: int
    first_s: float  # until its first token was there
    text_s: float  # until its last

    def num_bytes(self, way: int) -> int:
        return sum(size for _, its, size in self.seen if its == way)


# --- the watcher ---------------------------------------------------------------------------------


def features(recording: Recording, kind: str) -> Features:
    """One recording as a point: one of KINDS."""
    parts: list[Features] = []
    began = recording.seen[0][0]
    for way in (UP, DOWN):
        times = np.array([at - began for at, its, _ in recording.seen if its == way])
        sizes = np.array([size for _, its, size in recording.seen if its == way], float)
        if kind in ("first", "all"):
            parts.append(_first(sizes)[:1])
        if kind in ("opening", "all"):
            opening = sizes[times < OPENING_S]
            parts.append(np.array([len(opening), opening.sum()]))
        if kind in ("sizes", "all"):
            common = np.bincount(np.minimum(sizes[1:].astype(int), 255), minlength=256)
            parts += [_first(sizes[1:]), common, np.array([len(sizes), sizes[1:].sum()])]
        if kind in ("times", "all"):
            gaps = np.diff(times, prepend=0.0)
            parts += [_first(gaps), times[-1:], np.array([len(times), gaps.mean(), gaps.std()])]
    return np.concatenate(parts)


def _first(values: Features) -> Features:
    return np.pad(values[:NUM_STEPS], (0, max(0, NUM_STEPS - len(values))))


def share_recognised(recordings: Sequence[Recording]) -> dict[str, float]:
    """The share of recordings whose prompt is told by all the others, for each classifier."""
    prompts = np.array([recording.prompt for recording in recordings])
    shares = {}
    for kind in KINDS:
        points = np.array([features(recording, kind) for recording in recordings])
        right = np.array([_classify(points, prompts, left_out) for left_out in range(len(points))])
        for column, name in enumerate(("neighbour", "mean")):
            shares[f"{kind}, {name}"] = float((right[:, column] == prompts).mean())
    return shares


def _classify(points: Features, prompts: npt.NDArray[np.int_], left_out: int) -> tuple[int, int]:
    """The prompt of the nearest other recording, and of the nearest mean of a prompt's others.

    Distances are in units of what a feature varies by within a prompt: what is always the same
    for a prompt counts most.
    """
    others = np.arange(len(points)) != left_out
    names, group = np.unique(prompts[others], return_inverse=True)
    known = points[others]
    means = np.array([known[group == index].mean(axis=0) for index in range(len(names))])
    within = np.sqrt(((known - means[group]) ** 2).mean(axis=0))
    unit = np.maximum(within, 0.01 * known.std(axis=0))
    tells = unit > 0
    point, unit = points[left_out, tells], unit[tells]
    by_neighbour = (np.abs(known[:, tells] - point) / unit).sum(axis=1).argmin()
    by_mean = (((means[:, tells] - point) / unit) ** 2).sum(axis=1).argmin()
    return int(prompts[others][by_neighbour]), int(names[by_mean])


# --- the traffic ---------------------------------------------------------------------------------


async def record(device: Device, watched: Watched, prompt: int, request: Request) -> Recording:
    """Have one text written; it is seen until the link is silent again."""
    begin, began = len(watched.seen), time.perf_counter()
    num_tokens, first_s, text_s = 0, 0.0, 0.0
    async with device.write(request) as writing:
        async for committed in writing:
            num_tokens += len(committed.ids)
            text_s = time.perf_counter() - began
            first_s = first_s or text_s
    num_seen = 0
    while num_seen < len(watched.seen):
        num_seen = len(watched.seen)
        await asyncio.sleep(SILENCE_S)
    return Recording(prompt, watched.seen[begin:], num_tokens, first_s, text_s)


async def watched_device(server: str, draft: str, *, pads: bool) -> tuple[Device, Watched]:
    watched = Watched(await WebSocketTransport.connect(parse_address(server)))
    link = await DeviceLink.greet(watched, draft, None, pads=pads)
    options = DrafterOptions(draft)
    drafter = await _ngram(link, options) if draft == "ngram" else _load(options)
    await asyncio.sleep(2.0 if pads else 0.0)  # what the drafter learned from has gone by
    return Device(Line(link), drafter), watched


async def record_all(server: str, arguments: argparse.Namespace, *, pads: bool) -> list[Recording]:
    """Every prompt as often as is wanted, in an order of chance, some at once."""
    texts = human_eval(arguments.prompts)
    rng = random.Random(20)
    prompts = [*range(len(texts))] * arguments.recordings
    jobs = [(prompt, rng.getrandbits(32)) for prompt in prompts]
    rng.shuffle(jobs)
    params = SamplingParams(temperature=arguments.temperature)

    async def worker() -> list[Recording]:
        device, watched = await watched_device(server, arguments.draft, pads=pads)
        recordings = []
        while jobs:
            prompt, seed = jobs.pop()
            stop = ["\n\n"] if arguments.stop else []
            request = Request(texts[prompt], params, "coupled", seed, arguments.tokens, 6, stop)
            recordings.append(await record(device, watched, prompt, request))
        await device.close()
        return recordings

    workers = await asyncio.gather(*[worker() for _ in range(arguments.at_once)])
    return [recording for recordings in workers for recording in recordings]


def cost(recordings: Sequence[Recording]) -> dict[str, float]:
    num_tokens = sum(recording.num_tokens for recording in recordings)
    seen_s = [recording.seen[-1][0] - recording.seen[0][0] for recording in recordings]
    return {
        "texts": len(recordings),
        "tokens": num_tokens,
        "messages_per_text": sum(len(r.seen) for r in recordings) / len(recordings),
        "uplink_bytes_per_token": sum(r.num_bytes(UP) for r in recordings) / num_tokens,
        "downlink_bytes_per_token": sum(r.num_bytes(DOWN) for r in recordings) / num_tokens,
        "first_token_s": float(np.median([r.first_s for r in recordings])),
        "text_s": float(np.median([r.text_s for r in recordings])),
        "seen_s": float(np.median(seen_s)),
        "sizes_up": len({size for r in recordings for _, way, size in r.seen if way == UP}),
        "sizes_down": len({size for r in recordings for _, way, size in r.seen if way == DOWN}),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "multispin", "serve", "--target", arguments.target]
    command += ["--port", "0", "--max-sessions", str(arguments.at_once), "--mode", arguments.mode]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    result: dict[str, Any] = {"benchmark": "side_channel", **vars(arguments)}
    try:
        for name, pads in (("plain", False), ("padded", True)):
            recordings = asyncio.run(record_all(address, arguments, pads=pads))
            shares = share_recognised(recordings)
            result[name] = {**cost(recordings), "recognised": max(shares.values()), "by": shares}
    finally:
        server.terminate()
        server.wait()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--draft", default="ngram", choices=("ngram", "lookup"))
    parser.add_argument("--mode", default="window")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--recordings", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--stop", action="store_true", help="texts end with their first paragraph")
    parser.add_argument("--at-once", type=int, default=4)
    arguments = parser.parse_args()
    print(__doc__.split("\n\n", maxsplit=2)[2])
    result = measure(arguments)
    print(f"{'':28}{'plain':>12}{'padded':>12}")
    for key in result["plain"]:
        if key != "by":
            print(f"{key:28}{result['plain'][key]:12.3f}{result['padded'][key]:12.3f}")
    for key in result["plain"]["by"]:
        plain, padded = (result[name]["by"][key] for name in ("plain", "padded"))
        print(f"{'  ' + key:28}{plain:12.1%}{padded:12.1%}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
