"""What the controller costs the server: share of its time, by mode and number of devices.

    python benchmarks/controller.py

A controller is driven as the server drives it, on a virtual clock, with 5 verdicts a second and
device, one pass for all: estimates move, plans are made when they are due. Measured is the time of
all of the controller's calls against the virtual time that passed, and the longest one: planning
is capped at 0.5 % of the time, but for 0.3 s at the start that are left out, and done in slices of
about 2 ms. Each figure is the least of three
runs, because other work on the machine shows in it. The last line is one JSON object.
"""

from __future__ import annotations

import json
import time

import numpy as np

from multispin.core.cells import Cells
from multispin.core.controller import ControlSettings, SessionKey
from multispin.types import Mode
from multispin.wire.payload import payload

SECONDS = 40.0
START_S = 20.0  # before, in which more may be planned
VERDICTS_PER_S = 5.0
MODES: tuple[Mode, ...] = ("rounds", "stop-and-wait", "window")


def measure(mode: Mode, num_devices: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    now = [0.0]
    began_real = [time.perf_counter()]
    # Planning looks at the clock to see what it cost: real time goes on within a call.
    controller = Cells(
        ControlSettings("heterogeneous", uplink_bits_per_s=5e3 * num_devices),
        payload("coupled", 1 << 15),
        32,
        lambda: now[0] + time.perf_counter() - began_real[0],
        mode,
    )
    keys = [SessionKey(index, 0) for index in range(num_devices)]
    acceptance = rng.uniform(0.3, 0.95, num_devices)
    speed = rng.uniform(0.005, 0.04, num_devices)
    spent: list[float] = []
    began_real[0] = time.perf_counter()
    for key in keys:
        controller.join(key, 32)
    steps = int((START_S + SECONDS) * VERDICTS_PER_S * num_devices)
    for step in range(steps):
        index = step % num_devices
        key = keys[index]
        now[0] = step / (VERDICTS_PER_S * num_devices)
        began = began_real[0] = time.perf_counter()
        length = 6
        drafting_s = length * float(speed[index])
        accepted = min(length, int(rng.geometric(1 - acceptance[index])) - 1)
        controller.drafted(key, length, drafting_s, drafting_s + 0.05)
        if index == 0:  # a pass verifies everybody
            rows = 7 * num_devices
            controller.passed(rows, num_devices, 0.03 + 0.00002 * rows)
        controller.answered(key)
        controller.compared(key, length, accepted)
        controller.grant(key)
        if now[0] >= START_S:
            spent.append(time.perf_counter() - began)
    calls = np.array(spent)
    return {
        "share": float(calls.sum()) / SECONDS,
        "median_us": 1e6 * float(np.median(calls)),
        "p99_ms": 1e3 * float(np.quantile(calls, 0.99)),
        "longest_ms": 1e3 * float(calls.max()),
    }


def best_of_three(mode: Mode, num_devices: int) -> dict[str, float | str]:
    runs = [measure(mode, num_devices) for _ in range(3)]
    figures = {key: min(run[key] for run in runs) for key in runs[0]}
    return {"mode": mode, "devices": num_devices, **figures}


def main() -> None:
    print(__doc__.split("\n\n", maxsplit=2)[2])
    results = [best_of_three(mode, num) for mode in MODES for num in (3, 20, 200, 256)]
    print(
        f"{'mode':>15}{'devices':>8}{'share of time':>15}{'median call, us':>17}{'longest, ms':>13}"
    )
    for r in results:
        print(
            f"{r['mode']:>15}{r['devices']:8}{r['share']:15.2%}"
            f"{r['median_us']:17.1f}{r['longest_ms']:13.1f}"
        )
    print(json.dumps({"benchmark": "controller", "results": results}))


if __name__ == "__main__":
    main()
