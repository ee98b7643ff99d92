"""Does the simulator tell the truth? Goodput that it predicts against that of the running server.

    python benchmarks/predicted.py [--devices 1,4,8] [--seconds 20] [--record pair.record]

First `multispin profile` measures the Qwen pair here and writes a CELL.toml. From it the simulator
predicts each mode, with the passes as profiled and the drafts of the record. Then the real server
runs with replayed devices of that record, one after the other, on the same machine. Prompts are
left out of both: the simulator has none, and of the measured goodput that of the time counts in
which no text waited for its first token. Nothing else should run meanwhile.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from multispin.bench.devices import DeviceSpeed
from multispin.bench.run import SETUPS, run_devices
from multispin.cell import Cell, parse_cell
from multispin.sim.shell import simulate_core
from multispin.sim.statistics import Statistics
from multispin.types import Mode

TARGET, DRAFT = "qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b"
DRAFT_S, ROUND_TRIP_S = 0.010, 0.020
NUM_PASSES = 4000
MODES: dict[str, tuple[Mode, str | None]] = {
    "server-only": ("stop-and-wait", "server-only"),
    "rounds": ("rounds", "heterogeneous"),
    "stop-and-wait": ("stop-and-wait", "heterogeneous"),
    "window": ("window", None),
}


def multispin(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "multispin", *arguments], check=True, stdout=sys.stderr)


def cell_of(profiled: str, record: Path, num_devices: int) -> Cell:
    """The profiled server; replayed devices, an uplink that is not scarce."""
    lines = []
    for line in profiled.splitlines():
        key = line.partition(" =")[0]
        new = {
            "bandwidth_hz": "1e9",
            "round_trip_s": str(ROUND_TRIP_S),
            "count": str(num_devices),
            "draft_s_per_token": str(DRAFT_S),
        }.get(key)
        lines.append(line if new is None else f"{key} = {new}")
    replayed = f'[device.acceptance_model]\nkind = "replay"\nrecord = "{record}"\n'
    return parse_cell("\n".join([*lines, replayed]))


def predicted(cell: Cell, mode: str) -> float:
    run_mode, policy = MODES[mode]
    longest = replace(cell, problem=replace(cell.problem, max_draft_length=32))
    trace = simulate_core(longest, run_mode, policy, NUM_PASSES, seed=0)
    return float(Statistics(trace, longest).goodput.tokens_per_s)


async def measured(mode: str, record: Path, num_devices: int, seconds: float) -> float:
    served = await run_devices(
        SETUPS[mode],
        ["--target", TARGET, "--replay", str(record), "--max-sessions", str(2 * num_devices + 8)],
        str(record),
        [DeviceSpeed(DRAFT_S, ROUND_TRIP_S, 0.0)] * num_devices,
        seconds,
        True,
        lambda wrote: None,
    )
    writing = served.measured.writing_goodput_tokens_per_s
    return served.measured.goodput_tokens_per_s if writing is None else writing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1,4,8")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--modes", default=",".join(MODES))
    arguments = parser.parse_args()
    print(__doc__.split("\n\n", maxsplit=2)[2])
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = (arguments.record or folder / "pair.record").resolve()
        if not record.exists():
            pair = ("--target", TARGET, "--draft", DRAFT)
            multispin("record", *pair, "--human-eval", "10", "--out", str(record))
        multispin("profile", "--target", TARGET, "--draft", DRAFT, "--out", f"{folder}/CELL.toml")
        profiled = (folder / "CELL.toml").read_text("utf-8")
        print(f"{'devices':>7}  {'mode':14}{'predicted':>10}{'measured':>10}{'ratio':>7}  tokens/s")
        for num_devices in map(int, arguments.devices.split(",")):
            cell = cell_of(profiled, record, num_devices)
            for mode in arguments.modes.split(","):
                told = predicted(cell, mode)
                seen = asyncio.run(measured(mode, record, num_devices, arguments.seconds))
                rows.append({"devices": num_devices, "mode": mode, "predicted": told})
                rows[-1] |= {"measured": seen, "ratio": told / seen}
                print(f"{num_devices:7}  {mode:14}{told:10.1f}{seen:10.1f}{told / seen:7.2f}")
    worst = max(abs(np.log([row["ratio"] for row in rows])))
    print(json.dumps({"benchmark": "predicted", "rows": rows, "worst_ratio": float(np.exp(worst))}))


if __name__ == "__main__":
    main()
