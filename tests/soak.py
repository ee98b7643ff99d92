"""The long forms of the tests in tests/fuzz and tests/faults: `make soak`, or

    python -m tests.soak [NAME ...] [--share 1.0] [--seed 1]

Prints the figures of each; ``--share 0.1`` does a tenth of everything. What goes wrong ends it. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any

from tests.faults import cluster_load, load, shaped
from tests.faults.storm import Weather, weather_storm
from tests.fuzz.decoder import fuzz_decoders
from tests.fuzz.http import fuzz_http
from tests.fuzz.sockets import fuzz_sockets
from tests.process import served

SERVE = ("--target", "ngram", "--ctx-size", "512", "--log-level", "warning")
MODES = ("stop-and-wait", "window")
SHAPES = (
    *(shaped.Shape(rate) for rate in (80e3, 160e3, 320e3)),
    shaped.Shape(160e3, delay_s=0.05),
)
Figures = dict[str, Any]


def decoder(share: float, seed: int) -> Figures:
    return fuzz_decoders(round(1_000_000 * share), seed)


def sockets(share: float, seed: int) -> Figures:
    with served(*SERVE) as (process, address):
        return asyncio.run(fuzz_sockets(process.pid, address, round(50_000 * share), seed))


def http(share: float, seed: int) -> Figures:
    with served(*SERVE) as (process, address):
        return asyncio.run(fuzz_http(process.pid, address, round(50_000 * share), seed))


def storms(share: float, seed: int) -> Figures:
    """With keep-alives and waits as they are outside of tests."""
    num_texts = max(round(10 * share), 1)
    weather = Weather(fault=0.03)
    return {mode: weather_storm(20, num_texts, seed, mode, weather) for mode in MODES}


def sessions(share: float, seed: int) -> Figures:
    return asyncio.run(load.many_sessions(256, 600 * share, seed))


def engine(share: float, seed: int) -> Figures:
    return asyncio.run(load.kill_engines(max(round(50 * share), 1), 32, seed))


def restart(share: float, seed: int) -> Figures:
    return asyncio.run(load.restart_server(max(round(10 * share), 1), 64, seed))


def replicas(share: float, seed: int) -> Figures:
    num = max(round(150 * share), 12)
    calm = asyncio.run(cluster_load.calm(num, 3, seed, 0.1, (50, 150)))
    blows = asyncio.run(
        cluster_load.blows(num, max(round(36 * share), 1), seed, 0.1, (50, 150), 5.0)
    )
    return {"calm": calm, "blows": blows}


def link(share: float, seed: int) -> Figures:
    if not shaped.is_possible():
        return {"skipped": "needs the right to make network namespaces"}
    measured = [shaped.measure(shape, 60 * share) for shape in SHAPES]
    return {"links": measured, "worst_ratio": min(each["ratio"] for each in measured)}


ALL: dict[str, Callable[[float, int], Figures]] = {
    part.__name__: part
    for part in (decoder, sockets, http, storms, engine, restart, replicas, link, sessions)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ALL, []], default=[], metavar="NAME")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    told: Figures = {"soak": arguments.share, "seed": arguments.seed, "cores": os.cpu_count()}
    for name in arguments.names or ALL:
        began, load_before = time.monotonic(), os.getloadavg()[0]
        print(f"==> {name}", flush=True)
        figures = ALL[name](arguments.share, arguments.seed)
        figures["took_s"] = round(time.monotonic() - began, 1)
        figures["load_average_before"] = load_before
        told[name] = figures
        for key, value in figures.items():
            print(f"    {key}: {value:.4g}" if isinstance(value, float) else f"    {key}: {value}")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
