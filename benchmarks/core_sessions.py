"""What the server's core costs per session and pass, with hundreds of sessions.

    python benchmarks/core_sessions.py [--sessions 256] [--passes 60]

ServerCore is driven as a shell drives it, without sockets and with an engine that takes no time.
In mode window every device drafts three tokens a pass and sends each in a frame of its own. What
stands between two passes is ``complete`` and ``next_batch``; the rest has the time of a pass.

Processor time, the median over the passes, the least of three runs. Before each part as much memory
is read as caches hold, because a real server does other things between two passes, too.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
from random_texts import random_record

from multispin.core.batch import BatchLimits
from multispin.core.confidence import Calibration
from multispin.core.cost import RecordEngine
from multispin.core.device import DeviceSession
from multispin.core.engine import Batch, PassTime, StepResult
from multispin.core.limits import ServerLimits
from multispin.core.replay import ReplayDrafter
from multispin.core.server import ServerCore
from multispin.core.welcome import welcome
from multispin.lm.record import Record
from multispin.types import Mode, SamplingParams
from multispin.wire import frames
from multispin.wire.frames import Draft, Open, Opened, Verdict

PASS_S = 0.030
DRAFT_LENGTH = 32
FRAMES = 3  # of a device in a pass
REPEATS = 3
WARM_UP = 5  # passes
CACHE_BYTES = 8 << 20


class Spent:
    """Processor time of each part, for each pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._other = np.ones(CACHE_BYTES, np.uint8)

    @contextmanager
    def on(self, part: str, number: int = 1) -> Iterator[None]:
        """``number``: how often the part is done at once."""
        self._other.sum()
        began = time.process_time()
        yield
        self.seconds[part].append((time.process_time() - began) / max(1, number))


class Cell:
    """All devices on one clock that stands still unless a pass goes by."""

    def __init__(self, record: Record, mode: Mode, draft_length: int, num_sessions: int) -> None:
        self.now = 0.0
        self.spent = Spent()
        max_rows = num_sessions * (DRAFT_LENGTH + 1)
        self._engine = RecordEngine(
            record, num_sequences=num_sessions, context_length=1024, max_rows=max_rows
        )
        passes = [PassTime(n, min(n, num_sessions), PASS_S) for n in (1, 4, 16, 64, 256, max_rows)]
        self._core = ServerCore(
            msgspec.structs.replace(self._engine.info, passes=passes),
            ServerLimits(batch=BatchLimits(max_rows=max_rows, mode=mode)),
            lambda: self.now,
        )
        drafter = ReplayDrafter(record) if draft_length else None
        self._sessions = []
        for link in range(num_sessions):
            text = record.texts[link]
            message = Open(
                0, text.prompt, SamplingParams(), "greedy", 0, len(text.path) // 4, draft_length
            )
            self._core.connect(link, 1.0)
            prompt = np.frombuffer(text.prompt_ids, np.int32)
            [(_, opened)] = self._core.open(link, message, prompt)
            assert isinstance(opened, Opened)
            greeting = welcome(self._core)
            self._sessions.append(
                DeviceSession(message, opened, drafter, link, greeting, Calibration())
            )

    def run_pass(self) -> None:
        num = len(self._sessions)
        with self.spent.on("next_batch", num):
            batch = self._core.next_batch()
        with self.spent.on("batch to bytes", num):
            data = msgspec.msgpack.encode(batch)
        result = self._engine.step(msgspec.msgpack.decode(data, type=Batch))
        with self.spent.on("learn", num):
            self._core.learn()
        self.now += PASS_S
        drafts = self._drafts()
        if drafts:
            with self.spent.on("draft, a frame", len(drafts)):
                for link, data in drafts:
                    draft = frames.decode_from_device(data)
                    assert isinstance(draft, Draft)
                    self._core.draft(link, draft)
        data = msgspec.msgpack.encode(result)
        with self.spent.on("result from bytes", num):
            result = msgspec.msgpack.decode(data, type=StepResult)
        with self.spent.on("complete", num):
            outgoing = self._core.complete(result)
        with self.spent.on("verdict to bytes", num):
            for _, frame in outgoing:
                frames.encode(frame)
        for link, frame in outgoing:
            if isinstance(frame, Verdict) and isinstance(link, int):
                self._sessions[link].apply(frame, self.now)

    def _drafts(self) -> list[tuple[int, bytes]]:
        drafts = []
        for _ in range(FRAMES):
            for link, session in enumerate(self._sessions):
                if job := session.job():
                    session.add(job, session.draft(job), PASS_S / FRAMES)
                if session.owes_message:
                    drafts.append((link, frames.encode(session.message())))
        return drafts


def measure(
    record: Record, mode: Mode, length: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """Microseconds of each part."""
    runs = []
    for _ in range(REPEATS):
        cell = Cell(record, mode, length, arguments.sessions)
        for _ in range(WARM_UP + arguments.passes):
            cell.run_pass()
        parts = cell.spent.seconds.items()
        runs.append({part: statistics.median(spent[WARM_UP:]) for part, spent in parts})
    return {part: 1e6 * min(run[part] for run in runs) for part in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=256)
    parser.add_argument("--passes", type=int, default=60)
    arguments = parser.parse_args()
    print(__doc__.split("\n\n", maxsplit=2)[2])
    record = random_record(arguments.sessions, 8 * (WARM_UP + arguments.passes))
    cases = {
        "server-only": measure(record, "stop-and-wait", 0, arguments),
        "window": measure(record, "window", DRAFT_LENGTH, arguments),
    }
    print(f"{'us a session':24}" + "".join(f"{name:>14}" for name in cases))
    for part in cases["window"]:
        figures = [f"{case[part]:14.2f}" if part in case else f"{'':14}" for case in cases.values()]
        print(f"{part:24}" + "".join(figures))
    result = {"benchmark": "core_sessions", "sessions": arguments.sessions, "cases_us": cases}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
