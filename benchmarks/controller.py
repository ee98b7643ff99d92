"""What planning costs the server: share of its time, by number of devices.

    python benchmarks/controller.py

A controller is driven as the server drives it, on a virtual clock, with 5 verdicts a second and
device, one pass for all: estimates move, plans are made when they are due. Measured is the time of
all of the controller's calls, against the virtual time that passed; planning is capped at 0.5 % of
it. The last line is one JSON object.
"""

from __future__ import annotations

import json
import time

import numpy as np

from multispin.core.controller import Controller, ControlSettings, SessionKey

SECONDS = 20.0
VERDICTS_PER_S = 5.0


def measure(num_devices: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    now = [0.0]
    began_real = [0.0]
    # Planning looks at the clock to see what it cost: real time goes on within a call.
    controller = Controller(
        ControlSettings("heterogeneous", uplink_bits_per_s=1e6),
        18,
        32,
        lambda: now[0] + time.perf_counter() - began_real[0],
    )
    keys = [SessionKey(index, 0) for index in range(num_devices)]
    acceptance = rng.uniform(0.3, 0.95, num_devices)
    speed = rng.uniform(0.005, 0.04, num_devices)
    spent = 0.0
    worst = 0.0
    began_real[0] = time.perf_counter()
    for key in keys:
        controller.join(key, 32)
    steps = int(SECONDS * VERDICTS_PER_S * num_devices)
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
            controller.passed(7 * num_devices, num_devices, 0.03 + 0.002 * num_devices)
        controller.judged(key, length, accepted)
        controller.grant(key)
        took = time.perf_counter() - began
        spent += took
        worst = max(worst, took)
    return {
        "devices": num_devices,
        "share": spent / SECONDS,
        "us_per_verdict": 1e6 * spent / steps,
        "longest_call_ms": 1e3 * worst,
    }


def main() -> None:
    print(__doc__.split("\n\n", maxsplit=2)[2])
    results = [measure(num) for num in (3, 20, 200)]
    print(f"{'devices':>8}{'share of time':>15}{'per verdict, us':>17}{'longest call, ms':>18}")
    for r in results:
        print(
            f"{r['devices']:8.0f}{r['share']:15.2%}{r['us_per_verdict']:17.0f}"
            f"{r['longest_call_ms']:18.1f}"
        )
    print(json.dumps({"benchmark": "controller", "results": results}))


if __name__ == "__main__":
    main()
