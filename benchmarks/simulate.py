"""How long `multispin simulate` takes in mode rounds: one cell, its growth, and a fleet of cells.

What is timed: ``simulate_rounds`` from a loaded cell to its trace and goodput, planning included.
Devices stand at 150 m in a street (TR 38.901 UMi), line of sight and shadowing drawn anew for each
seed, so that every cell of a fleet is planned for itself. Radios: steady; Rayleigh blocks of 30 ms
through which uploads go on; the same with a plan for each new block (instantaneous CSI), where
planning takes nearly all of the time. Ceiling: planning once, and nothing else.
Cells of the fleet are independent: a pool of processes shares them out. Memory is the greatest
resident set of the parent and of a worker, times the workers. Processor time is beside the wall
clock for machines that have other work. Last line: one JSON object.

    python benchmarks/simulate.py [--quick] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial

import numpy as np

from multispin.cell import Cell, parse_cell
from multispin.control import solve
from multispin.sim.rounds import simulate_rounds
from multispin.sim.statistics import Statistics

LIMITS_S = {"one cell": 10.0, "fleet": 120.0}
LIMIT_MB = 2000.0
FLEET_CELLS, FLEET_ROUNDS, DEVICES = 5_000, 100, 20
FADING = 'fading = "rayleigh"\ncoherence_s = 0.03'
RADIOS = {"steady": ("", ""), "fading": (FADING, ""), "instantaneous": (FADING, "instantaneous")}
CELL = """
[cell]
bandwidth_hz = {bandwidth_hz}
csi = "{csi}"
[server]
verify_fixed_s = 0.02268
verify_per_device_s = {per_device_s}
[[device]]
name = "phone"
count = {devices}
draft_s_per_token = 0.020
acceptance = 0.74
bits_per_token = 31744
[device.channel]
model = "umi"
distance_m = 150
carrier_hz = 3.5e9
transmit_power_dbm = 23
noise_figure_db = 5
{fading}
"""


@cache
def cell(devices: int, radio: str) -> Cell:
    """The band grows with the devices, so that drafting pays as much in every size."""
    fading, csi = RADIOS[radio]
    return parse_cell(
        CELL.format(
            bandwidth_hz=0.5e6 * devices,
            per_device_s=0.01272 * DEVICES / devices,
            devices=devices,
            fading=fading,
            csi=csi or "statistical",
        )
    )


def simulated(devices: int, radio: str, rounds: int, seed: int) -> float:
    """Goodput of one cell."""
    trace = simulate_rounds(cell(devices, radio), "heterogeneous", rounds, seed)
    return Statistics(trace, cell(devices, radio)).goodput.tokens_per_s


def seconds(devices: int, radio: str, rounds: int) -> float:
    """Median of three seeds."""
    cell(devices, radio)
    times = []
    for seed in range(3):
        started = time.perf_counter()
        simulated(devices, radio, rounds, seed)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def planning_s(devices: int) -> float:
    problem = cell(devices, "steady").problem
    solve(problem)
    started = time.perf_counter()
    solve(problem)
    return time.perf_counter() - started


def grow(radio: str, sizes: list[tuple[int, int]]) -> list[dict[str, float | int | str]]:
    rows: list[dict[str, float | int | str]] = []
    for devices, rounds in sizes:
        took = seconds(devices, radio, rounds)
        per_ns = took / (devices * rounds) * 1e9
        rows.append(
            {
                "radio": radio,
                "devices": devices,
                "rounds": rounds,
                "seconds": round(took, 3),
                "ns_per_device_round": round(per_ns),
            }
        )
        asked = f"< {LIMITS_S['one cell']:g}" if (devices, rounds) == (20, 10_000) else ""
        print(
            f"{radio:>13} {devices:8d} {rounds:8d} {took:8.2f} {per_ns:9.0f}  {asked}", flush=True
        )
    return rows


def fleet(radio: str, num_cells: int, workers: int) -> dict[str, float | int | str]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    started = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        run = partial(simulated, DEVICES, radio, FLEET_ROUNDS)
        goodputs = list(pool.map(run, range(num_cells), chunksize=50))
    took = time.perf_counter() - started
    kb = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    cpu_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    memory_mb = (kb[0] + workers * kb[1]) / 1e3
    print(
        f"{radio:>13} {num_cells * DEVICES:8d} {FLEET_ROUNDS:8d} {took:8.2f} "
        f"{took / (num_cells * DEVICES * FLEET_ROUNDS) * 1e9:9.0f}  < {LIMITS_S['fleet']:g}, "
        f"{cpu_s:.0f} s of processor time, "
        f"{memory_mb:.0f} MB < {LIMIT_MB:g}; mean goodput {np.mean(goodputs):.1f} tokens/s a cell",
        flush=True,
    )
    return {
        "radio": radio,
        "cells": num_cells,
        "devices": num_cells * DEVICES,
        "rounds": FLEET_ROUNDS,
        "workers": workers,
        "seconds": round(took, 2),
        "processor_s": round(cpu_s, 2),
        "memory_mb": round(memory_mb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of it all")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    part = 10 if options.quick else 1
    print(f"planning alone, {DEVICES} devices: {planning_s(DEVICES) * 1e3:.1f} ms (ceiling)")
    print(f"{'radio':>13} {'devices':>8} {'rounds':>8} {'s':>8} {'ns each':>9}  asked")
    long, wide = 10_000 // part, 1_000 // part
    sizes = [(20, long // 4), (20, long // 2), (20, long), (200, wide), (2_000, wide)]
    rows = [*grow("steady", sizes), *grow("fading", sizes)]
    rows += grow("instantaneous", [(20, wide)])
    print(f"fleet of cells of {DEVICES}, {options.workers} processes")
    fleets = [fleet(radio, FLEET_CELLS // part, options.workers) for radio in ("steady", "fading")]
    limits = {"limits_s": LIMITS_S, "limit_mb": LIMIT_MB}
    print(json.dumps({"benchmark": "simulate", **limits, "rows": rows, "fleets": fleets}))


if __name__ == "__main__":
    main()
