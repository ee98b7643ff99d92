"""How long the controller takes to solve a cell, one core, by size, radio and cost model.

What is timed: ``multispin.control.solve`` of the heterogeneous policy on cells drawn as the paper
draws them (20 ms a token, mean SNR 20 dB, Rayleigh fading), the bandwidth growing with the number
of devices. Processor time, not wall clock (the solver
calls no threaded routine): the median and the least of several different cells
after one to warm up. Ceiling: what one evaluation of the objective costs at that size, which no
solver can beat. Last line: one JSON object.

    python benchmarks/solver.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from multispin.control import Problem, bandwidth_for, solve
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency
from multispin.radio.units import spectral_efficiency

LIMITS_MS = {20: 3.0, 1_000: 50.0, 100_000: 5_000.0}
REPEATS = {20: 40, 100: 20, 1_000: 9, 10_000: 3, 100_000: 2}


def draw_cell(rng: np.random.Generator, num_devices: int, kind: str) -> Problem:
    """One cell; ``kind`` is paper, per-token, header or noise."""
    snr = 100.0 * rng.uniform(0.2, 0.5, num_devices) / 0.35 * rng.exponential(1.0, num_devices)
    snr = np.maximum(snr, 1e-2)
    share = 0.5e6
    per_token = 0.0005 * 20 / num_devices if kind == "per-token" else 0.0
    return Problem(
        draft_s_per_token=0.020 * rng.uniform(0.85, 1.15, num_devices),
        acceptance=np.clip(rng.normal(0.74, 0.2, num_devices), 0.01, 0.99),
        bits_per_token=np.full(num_devices, 31744.0),
        bits_per_draft=np.full(num_devices, 2000.0 if kind == "header" else 0.0),
        uplink=(
            BandwidthNoise(share * snr)
            if kind == "noise"
            else ConstantEfficiency(spectral_efficiency(snr))
        ),
        bandwidth_hz=share * num_devices,
        verify_fixed_s=0.02268,
        verify_per_device_s=0.01272 * 20 / num_devices,
        verify_per_token_s=per_token,
    )


def measure(num_devices: int, kind: str) -> dict[str, float | int | str]:
    rng = np.random.default_rng(0)
    cells = [draw_cell(rng, num_devices, kind) for _ in range(REPEATS[num_devices] + 1)]
    plan = solve(cells[0])
    times = []
    for cell in cells[1:]:
        started = time.process_time()
        solve(cell)
        times.append(time.process_time() - started)
    started = time.process_time()
    bandwidth_for(cells[0], plan.lengths)
    one = time.process_time() - started
    return {
        "devices": num_devices,
        "kind": kind,
        "median_ms": round(float(np.median(times)) * 1e3, 3),
        "least_ms": round(min(times) * 1e3, 3),
        "one_evaluation_ms": round(one * 1e3, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out 10,000 devices and more")
    sizes = [n for n in REPEATS if n <= 1_000 or not parser.parse_args().quick]
    print(f"{'devices':>8} {'kind':>10} {'median ms':>10} {'least ms':>9} {'1 eval ms':>9}  asked")
    rows = []
    for num_devices in sizes:
        for kind in ("paper", "per-token", "header", "noise"):
            row = measure(num_devices, kind)
            rows.append(row)
            limit = f"< {LIMITS_MS[num_devices]:g}" if num_devices in LIMITS_MS else ""
            print(
                f"{num_devices:8d} {kind:>10} {row['median_ms']:10.2f} {row['least_ms']:9.2f} "
                f"{row['one_evaluation_ms']:9.3f}  {limit}",
                flush=True,
            )
    print(json.dumps({"benchmark": "solver", "limits_ms": LIMITS_MS, "rows": rows}))


if __name__ == "__main__":
    main()
