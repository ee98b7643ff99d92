"""What the runtime costs with hundreds of devices: sockets, sessions, batches, verdicts.

    python benchmarks/runtime_devices.py [--devices 256] [--seconds 20] [--draft-s-per-token 0.01]

The target is a cost model: 30 ms for a pass of any number of rows, texts of the built-in n-gram
model. The server is one process (and the engine's, which sleeps), replayed devices are another, all
on this machine. Ceiling: passes follow each other without a gap and every session has a row in each
pass, so that a device hears a verdict every 30 ms. Printed is which share of the ceiling's verified
rows per second was reached, and by how much the 99th percentile of the time between two verdicts
exceeds a pass: waiting between passes, sending and receiving, the devices' own work included.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from multispin.bench.devices import DeviceSpeed
from multispin.bench.record import Prompt, record_texts
from multispin.bench.run import SETUPS, run_devices
from multispin.core.engine import Engine
from multispin.lm.ngram import NgramModel
from multispin.lm.record import Record, write_record

PASS_S = 0.030
ROUND_TRIP_S = 0.020
NUM_TEXTS = 32
MAX_TOKENS = 800
MODES = ("server-only", "stop-and-wait", "window")


def texts() -> Record:
    engine = Engine(NgramModel.from_text(num_sequences=8, context_length=1024), max_rows=64)
    drafter = NgramModel.from_text(order=3, num_sequences=33, context_length=1024)
    prompts = [f"Device {chr(65 + i % 26)}{i} " for i in range(NUM_TEXTS)]
    read = [Prompt(text, engine.tokenize(text, parse_special=False)) for text in prompts]
    return record_texts(engine, drafter, "ngram", read, MAX_TOKENS, lambda line: None)


async def measure(mode: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    served = await run_devices(
        SETUPS[mode],
        [
            *("--target", f"cost:{folder / 'pass.toml'}", "--ctx-size", "1024"),
            *("--max-sessions", str(arguments.devices)),
        ],
        str(folder / "texts.record"),
        [DeviceSpeed(arguments.draft_s_per_token, ROUND_TRIP_S, 0.0)] * arguments.devices,
        arguments.seconds,
        lambda wrote: None,
    )
    measured = served.measured
    assert served.num_batches and served.num_rows and measured.inter_verdict_s.p99
    return {
        "mode": mode,
        "rows_per_s": served.num_rows / measured.seconds,
        "rows_per_pass": served.num_rows / served.num_batches,
        "share_of_ceiling": served.num_batches * PASS_S / measured.seconds,
        "added_s_p99": measured.inter_verdict_s.p99 - PASS_S,
        "goodput_tokens_per_s": measured.goodput_tokens_per_s,
        "mean_acceptance_length": measured.mean_acceptance_length,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--draft-s-per-token", type=float, default=0.010)
    arguments = parser.parse_args()
    print(__doc__.split("\n\n", maxsplit=2)[2])
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_record(folder / "texts.record", texts())
        (folder / "pass.toml").write_text(
            f'[cost]\nfixed_s = {PASS_S}\nrecord = "texts.record"\n', "utf-8"
        )
        print(f"{'':16}{'rows/s':>9}{'rows/pass':>11}{'of ceiling':>12}{'added, p99':>12}")
        for mode in MODES:
            case = asyncio.run(measure(mode, folder, arguments))
            cases.append(case)
            print(
                f"{mode:16}{case['rows_per_s']:9.0f}{case['rows_per_pass']:11.0f}"
                f"{case['share_of_ceiling']:12.1%}{1e3 * case['added_s_p99']:9.1f} ms",
                flush=True,
            )
    result = {"benchmark": "runtime_devices", "kind": "cost model", "devices": arguments.devices}
    print(json.dumps({**result, "draft_s_per_token": arguments.draft_s_per_token, "cases": cases}))


if __name__ == "__main__":
    main()
