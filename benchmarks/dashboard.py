"""What the dashboard costs: the server's time while somebody watches 100 devices, and bytes.

    python benchmarks/dashboard.py [--devices 100] [--seconds 10] [--repeats 6] [--viewers 1]

Server and devices are those of runtime_devices.py: a cost model of 30 ms a pass in mode window,
devices that draft a token every 10 ms, under the policy heterogeneous. In turn nobody watches for
so many seconds, then somebody does; the processor time of the server's process (threads included,
the engine's process not) is read from /proc before and after each. The cost is the median
difference of neighbours, in percent of one core; what is printed behind ± is half the distance
between their quartiles. Linux only.

The goal is less than 2 % of one core, and less than 300 kB for a page load. The last line is one
JSON object.
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
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from random_texts import random_record
from runtime_devices import NUM_TOKENS, PASS_S, SETTLE_S, LightDevice

from multispin.lm.record import write_record

WINDOW = 32
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def serving(folder: Path, num_devices: int) -> AsyncIterator[tuple[int, str]]:
    """The server's process id and address."""
    record = random_record(num_devices, NUM_TOKENS)
    write_record(folder / "texts.record", record)
    costs = f'[cost]\nfixed_s = {PASS_S}\nrecord = "texts.record"\n'
    (folder / "pass.toml").write_text(costs, "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "multispin", "serve", "--target", f"cost:{folder / 'pass.toml'}"),
        *("--port", "0", "--ctx-size", "1024", "--max-sessions", str(num_devices)),
        *("--mode", "window", "--policy", "heterogeneous"),
        *("--log-level", "warning"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield process.pid, (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


def processor_s(pid: int) -> float:
    """Time that a process has computed, in user and in kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class Viewer:
    """Follows the events as the page does."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.first_bytes = 0  # of the event with everything
        self.num_bytes = 0  # of all

    async def watch(self) -> None:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
        try:
            writer.write(f"GET /api/events HTTP/1.1\r\nHost: {self._address}\r\n\r\n".encode())
            while line := await reader.readline():
                self.num_bytes += len(line)
                if line.startswith(b"data: ") and not self.first_bytes:
                    self.first_bytes = len(line)
        finally:
            writer.close()


async def busy(pid: int, seconds: float) -> float:
    """Share of a core that the process takes for so long."""
    began_s, before_s = time.monotonic(), processor_s(pid)
    await asyncio.sleep(seconds)
    return (processor_s(pid) - before_s) / (time.monotonic() - began_s)


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    async with serving(folder, arguments.devices) as (pid, address):
        record = random_record(arguments.devices, NUM_TOKENS)
        connecting = (LightDevice.connect(address, 0.0, 0.0) for _ in record.texts)
        devices = await asyncio.gather(*connecting)
        for device, text in zip(devices, record.texts, strict=True):
            device.begin(text, WINDOW, 0.010)
        while not all(device.heard_at for device in devices):
            await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLE_S)
        alone, watched, rates = [], [], []
        for _ in range(arguments.repeats):
            alone.append(await busy(pid, arguments.seconds))
            viewers = [Viewer(address) for _ in range(arguments.viewers)]
            tasks = [asyncio.create_task(viewer.watch()) for viewer in viewers]
            watched.append(await busy(pid, arguments.seconds))
            rates.append(viewers[0].num_bytes / arguments.seconds)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for device in devices:
            await device.close()
    # Each watched stretch lies between two others, but the last: what drifts cancels.
    after = [*alone[1:], alone[-1]]
    costs = [w - 0.5 * (a + b) for w, a, b in zip(watched, alone, after, strict=True)]
    low, middle, high = np.quantile(costs, (0.25, 0.5, 0.75))
    files = (resources.files("multispin.api") / "static").iterdir()
    page = sum(len(file.read_bytes()) for file in files if file.name != "uPlot.LICENSE")
    return {
        "benchmark": "dashboard",
        "kind": "cost model",
        "devices": arguments.devices,
        "viewers": arguments.viewers,
        "server_busy": float(np.median(alone)),
        "cost_of_a_core": float(middle),
        "cost_spread": float(high - low) / 2,
        "bytes_per_s": float(np.median(rates)),
        "first_event_bytes": viewers[0].first_bytes,
        "page_bytes": page,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--viewers", type=int, default=1)
    arguments = parser.parse_args()
    print(__doc__.split("\n\n", maxsplit=2)[2])
    with tempfile.TemporaryDirectory() as name:
        found = asyncio.run(measure(arguments, Path(name)))
    print(f"server without a viewer {found['server_busy']:8.1%} of a core")
    print(f"viewers add             {found['cost_of_a_core']:8.2%} ± {found['cost_spread']:.2%}")
    print(f"events                  {found['bytes_per_s'] / 1000:8.1f} kB/s to each viewer")
    print(f"first of them           {found['first_event_bytes'] / 1000:8.1f} kB")
    print(f"page                    {found['page_bytes'] / 1000:8.1f} kB")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
