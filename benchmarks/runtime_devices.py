"""What the runtime costs with hundreds of devices: sockets, sessions, batches, verdicts.

    python benchmarks/runtime_devices.py [--devices 256] [--seconds 20] [--draft-s-per-token 0.01]

The server is one process of `multispin serve` (and the engine's, which sleeps). Its target is a
cost model: 30 ms for a pass of any number of rows. The devices are one process as well, on the same
machine, so they are as light as they can be: they know what they will draft, draft a token at a
time on a timer and send it in a frame of its own; .77 of what they draft is right.

Ceiling: passes follow each other without a gap and every session has a row in each pass, so that a
device hears a verdict every 30 ms. Printed is which share of the ceiling's passes was reached, and
by how much the 99th percentile of the time between two verdicts exceeds a pass: waiting between
passes, sending and receiving, the devices' own work included. Where the devices are busy all the
time, it is they who limit the rest.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from random_texts import random_record

from multispin.bench.link import BINARY, PING, PONG, ShapedSocket
from multispin.bench.run import SETUPS, cell_state, serving
from multispin.core.confidence import level_of
from multispin.lm.record import RecordedText, write_record
from multispin.types import SamplingParams
from multispin.wire import frames
from multispin.wire.frames import Draft, Hello, Open, Opened, PrefixDigest, Verdict, Welcome

PASS_S = 0.030
NUM_TOKENS = 800  # of each text
MODES = {"server-only": 0, "window": 32}  # most tokens that a device drafts ahead
SETTLE_S = 2.0  # after every device has heard a verdict


class LightDevice(ShapedSocket):
    """Writes one text after the other, the same each time."""

    def begin(self, text: RecordedText, window: int, draft_s: float) -> None:
        self.heard_at: list[float] = []
        self._text = text
        shape = (len(text.path) // 4, -1)
        self._proposed = np.frombuffer(text.drafts, "<i4").reshape(shape)[:, 0].tolist()
        confidences = np.frombuffer(text.confidences, "<f2").reshape(shape)[:, 0]
        self._levels = level_of(confidences.astype(np.float32)).tolist()
        self._window = window
        self._draft_s = draft_s
        self._session = -1
        self._write(BINARY, frames.encode(Hello(frames.PROTOCOL_VERSION, "light")))
        if window:
            self._tick()

    def data_received(self, data: bytes) -> None:
        if not self._welcome.done():
            super().data_received(data)
            return
        self._unread += data
        for kind, payload in self._frames():
            if kind == BINARY:
                self._take(payload)
            elif kind == PING:
                self._write(PONG, payload)

    def _take(self, data: bytes) -> None:
        match frames.decode_from_server(data):
            case Verdict() as verdict:
                self.heard_at.append(time.monotonic())
                self._judged(verdict)
            case Welcome(vocabulary_size=size):
                self._id_bits = frames.id_bits(size)
                self._open()
            case Opened():
                self._is_open = True
            case refused:
                raise AssertionError(refused)

    def _open(self) -> None:
        self._session += 1
        self._is_open = False
        self._epoch = self._num_committed = 0
        self._drafted: list[int] = []  # behind what is committed
        prompt = np.frombuffer(self._text.prompt_ids, "<i4")
        self._num_prompt = len(prompt)
        self._digest = PrefixDigest(prompt)
        message = Open(
            session=self._session,
            prompt=self._text.prompt,
            params=SamplingParams(),
            rule="greedy",
            seed=0,
            max_tokens=len(self._proposed),
            draft_length=self._window,
        )
        self._write(BINARY, frames.encode(message))

    def _tick(self) -> None:
        """A token has been drafted."""
        asyncio.get_running_loop().call_later(self._draft_s, self._tick)
        if self._session < 0 or not self._is_open or len(self._drafted) == self._window:
            return
        at = self._num_committed + len(self._drafted)
        if at == len(self._proposed):
            return
        token = self._proposed[at]
        draft = Draft(
            session=self._session,
            epoch=self._epoch,
            start=self._num_prompt + at,
            digest=self._digest.digest(self._drafted),
            tokens=(token | self._levels[at] << self._id_bits).to_bytes(2, "little"),
            drafting=round(1e4 * self._draft_s),
        )
        self._drafted.append(token)
        self._write(BINARY, frames.encode(draft))

    def _judged(self, verdict: Verdict) -> None:
        drafted, at = self._drafted, verdict.num_accepted
        committed = [*drafted[:at], verdict.token][: verdict.num_committed]
        if at < len(drafted) and drafted[at] != verdict.token:
            self._epoch += 1
            self._drafted = []
        else:
            self._drafted = drafted[len(committed) :]
        self._digest.update(committed)
        self._num_committed += len(committed)
        if verdict.finish:
            self._open()


async def measure(mode: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    record = random_record(arguments.devices, NUM_TOKENS)
    write_record(folder / "texts.record", record)
    costs = f'[cost]\nfixed_s = {PASS_S}\nrecord = "texts.record"\n'
    (folder / "pass.toml").write_text(costs, "utf-8")
    options = ["--target", f"cost:{folder / 'pass.toml'}", "--ctx-size", "1024"]
    options += ["--max-sessions", str(arguments.devices), *SETUPS[mode].arguments]
    async with serving(options) as address:
        connecting = (LightDevice.connect(address, 0.0, 0.0) for _ in record.texts)
        devices = await asyncio.gather(*connecting)
        for device, text in zip(devices, record.texts, strict=True):
            device.begin(text, MODES[mode], arguments.draft_s_per_token)
        while not all(device.heard_at for device in devices):
            await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLE_S)
        before = await asyncio.to_thread(cell_state, address)
        began, busy_s = time.monotonic(), time.process_time()
        await asyncio.sleep(arguments.seconds)
        busy_s = time.process_time() - busy_s
        heard = [np.array(device.heard_at) for device in devices]
        after = await asyncio.to_thread(cell_state, address)
        for device in devices:
            await device.close()
    spent = {name: after["counters"][name] - n for name, n in before["counters"].items()}
    seconds = after["clock_s"] - before["clock_s"]
    waits = np.concatenate([np.diff(times[times >= began]) for times in heard])
    return {
        "mode": mode,
        "rows_per_s": spent["num_rows"] / seconds,
        "rows_per_pass": spent["num_rows"] / spent["num_batches"],
        "tokens_per_row": spent["num_committed_tokens"] / spent["num_rows"],
        "share_of_ceiling": spent["num_batches"] * PASS_S / seconds,
        "added_s_p50": float(np.median(waits)) - PASS_S,
        "added_s_p99": float(np.quantile(waits, 0.99)) - PASS_S,
        "devices_busy": busy_s / arguments.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--draft-s-per-token", type=float, default=0.010)
    arguments = parser.parse_args()
    print(__doc__.split("\n\n", maxsplit=2)[2])
    cases = []
    columns = ("rows/s", "rows/pass", "of ceiling", "added, p50", "p99, ms", "devices busy")
    print(f"{'':14}" + "".join(f"{name:>14}" for name in columns))
    for mode in MODES:
        with tempfile.TemporaryDirectory() as name:
            case = asyncio.run(measure(mode, Path(name), arguments))
        cases.append(case)
        print(
            f"{mode:14}{case['rows_per_s']:14.0f}{case['rows_per_pass']:14.0f}"
            f"{case['share_of_ceiling']:14.1%}{1e3 * case['added_s_p50']:14.1f}"
            f"{1e3 * case['added_s_p99']:14.1f}{case['devices_busy']:14.0%}",
            flush=True,
        )
    result = {"benchmark": "runtime_devices", "kind": "cost model", "devices": arguments.devices}
    print(json.dumps({**result, "draft_s_per_token": arguments.draft_s_per_token, "cases": cases}))


if __name__ == "__main__":
    main()
