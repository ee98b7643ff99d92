"""A real link with a rate: goodput over it against what `multispin plan` says of that rate.

All devices live in a network namespace, whose one way out is shaped by the kernel's token bucket
(tc tbf): the cell's uplink. Its bucket holds one small packet, so that it hands out the rate and
nothing more. A relay of ours adds delay before it. The server has the cost model, the texts are
random, and a drafted token is the right one with a fixed probability: the figures are of a real
runtime over a real link, with modelled models ('cost model', 'replayed').
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.random_texts import random_record

from multispin.bench.devices import DeviceSpeed, Play, play
from multispin.lm.record import write_record
from tests.faults.proxy import Deed, Proxy
from tests.process import served

MTU = 150  # bytes of a packet: a draft and its headers fit
BUCKET = MTU + 14  # bytes, the link's own header included
ACCEPTANCE = 0.8
DRAFT_S = 0.004  # a token
# IP length of a packet that only acknowledges. `plan` counts drafts, and so does the bucket; over
# radio these packets are compressed to a few bytes.
ACKNOWLEDGEMENT = 52
PASS_S = 0.2
NUM_TOKENS = 3000  # of each text
NEAR, FAR = "10.213.7.1", "10.213.7.2"  # of the server, of the devices


class Shape(NamedTuple):
    """Of the cell's uplink, and the delay of each way."""

    rate_bits_per_s: float
    delay_s: float = 0.0
    num_devices: int = 32


def is_possible() -> bool:
    """Whether this process may shape links."""
    done = subprocess.run(["unshare", "-n", "tc", "qdisc"], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def namespace(shape: Shape) -> Iterator[str]:
    """A network namespace behind a shaped link to this one."""
    name, near, far = f"ms{os.getpid()}", f"msn{os.getpid()}", f"msf{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    bucket = ("rate", f"{shape.rate_bits_per_s:.0f}bit", "burst", str(BUCKET), "limit", "1000000")
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        _run("ip", "addr", "add", f"{NEAR}/30", "dev", near)
        _run("ip", "link", "set", near, "mtu", str(MTU), "up")
        _run(*inside, "ip", "addr", "add", f"{FAR}/30", "dev", far)
        _run(*inside, "ip", "link", "set", far, "mtu", str(MTU), "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        for line in (
            "qdisc add dev {} root handle 1: htb default 2",
            "class add dev {} parent 1: classid 1:1 htb rate 1gbit",
            "class add dev {} parent 1: classid 1:2 htb rate 1gbit",
            f"filter add dev {{}} parent 1: u32 match u16 {ACKNOWLEDGEMENT} 0xffff at 2 flowid 1:1",
        ):
            _run(*inside, "tc", *line.format(far).split())
        _run(*inside, "tc", "qdisc", "add", "dev", far, "parent", "1:2", "tbf", *bucket)
        yield name
    finally:
        subprocess.run(["ip", "link", "del", near], capture_output=True, check=False)
        _run("ip", "netns", "del", name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def cell(shape: Shape) -> str:
    """What `plan` is told of all this."""
    return f"""
        [cell]
        bandwidth_hz = {shape.rate_bits_per_s}
        [server]
        verify_fixed_s = {PASS_S}
        round_trip_s = {2 * shape.delay_s}
        max_draft_length = 32
        [[device]]
        name = "device"
        count = {shape.num_devices}
        draft_s_per_token = {DRAFT_S}
        acceptance = {ACCEPTANCE}
        payload = "coupled"
        vocabulary_size = 257
        spectral_efficiency = 1.0
    """


def planned(shape: Shape, folder: Path) -> tuple[int, float]:
    """Draft length and goodput, of the command itself."""
    (folder / "CELL.toml").write_text(cell(shape), "utf-8")
    command = [sys.executable, "-m", "multispin", "plan", os.fspath(folder / "CELL.toml"), "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    lengths = {device["draft_length"] for device in told["devices"]}
    assert len(lengths) == 1, "the devices are all the same"
    return lengths.pop(), told["goodput_tokens_per_s"]


def measure(shape: Shape, seconds: float) -> dict[str, float]:
    """Goodput as planned and as it was."""
    with tempfile.TemporaryDirectory() as name, namespace(shape) as behind:
        folder = Path(name)
        length, told = planned(shape, folder)
        write_record(
            folder / "texts.record", random_record(shape.num_devices, NUM_TOKENS, (ACCEPTANCE,), 32)
        )
        costs = f'[cost]\nfixed_s = {PASS_S}\nrecord = "texts.record"\n'
        (folder / "pass.toml").write_text(costs, "utf-8")
        target = ("--target", f"cost:{folder / 'pass.toml'}", "--ctx-size", "4096")
        mode = ("--mode", "rounds", "--max-sessions", str(shape.num_devices))
        with served(*target, *mode, "--host", NEAR, "--insecure") as (_, address):
            job = [address, str(folder / "texts.record"), length, seconds, *shape]
            done = subprocess.run(
                ["ip", "netns", "exec", behind, sys.executable, "-m", __name__, json.dumps(job)],
                check=True,
                stdout=subprocess.PIPE,
                timeout=seconds + 120,
            )
        goodput = json.loads(done.stdout)
    return {
        "rate_bits_per_s": shape.rate_bits_per_s,
        "delay_s": shape.delay_s,
        "draft_length": length,
        "planned_tokens_per_s": told,
        "measured_tokens_per_s": goodput,
        "ratio": goodput / told,
    }


async def _far_end(job: list) -> float:  # type: ignore[type-arg]
    """The devices, behind a relay that delays each way."""
    address, record, length, seconds, _, delay_s, num_devices = job
    async with Proxy(address, lambda number: lambda message: Deed(late_s=delay_s)) as proxy:
        near = proxy.address if delay_s else address
        devices = [DeviceSpeed(DRAFT_S, 0.0, 0.0)] * num_devices
        played = await play(Play(near, record, devices, length, seconds), lambda wrote: None)
    return played.goodput_tokens_per_s


if __name__ == "__main__":
    print(asyncio.run(_far_end(json.loads(sys.argv[1]))))
