"""What passes of a few sizes take, measured before the first session comes.

The server chooses the rows of a pass by what they cost; it goes on measuring while it serves, but a
guess at the start would cost the first users minutes. A build of llama.cpp that does not fit the
processor crashes here, too, in its first batch of several rows, where the server can still say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from multispin.core.engine import Batch, EngineInfo, PassTime, StepResult, Work, emptied
from multispin.types import SamplingParams

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LONG_DRAFTS = (8, 32)  # rows of one sequence: what a row costs without the sequence that it is of
NUM_SWEEPS = 2
MAX_SWEEP_S = 2.0  # larger passes are left out


class Steps(Protocol):
    """The part of an engine that is needed here."""

    info: EngineInfo

    def step(self, batch: Batch) -> StepResult: ...


def time_passes(engine: Steps) -> list[PassTime]:
    """Every size that fits, spread over as many sequences as there are, and a few in a single one.

    Of each its shortest pass: what else the machine does can only make one longer, and a size that
    was once taken for too slow would not be tried again for long.
    """
    info = engine.info
    fitting = min(info.max_rows, info.context_length)
    shapes = {(rows, min(rows, info.num_sequences)) for rows in ROWS if rows <= fitting}
    shapes |= {(rows, 1) for rows in LONG_DRAFTS if rows <= fitting}
    shortest: dict[tuple[int, int], float] = {}
    for _ in range(NUM_SWEEPS):
        spent_s = 0.0
        for shape in sorted(shapes):
            seconds = _time(engine, *shape)
            shortest[shape] = min(seconds, shortest.get(shape, seconds))
            spent_s += seconds
            if spent_s > MAX_SWEEP_S:
                break
    # As often as the estimate wants to see a size before it believes in it.
    return [PassTime(*shape, s) for shape, s in shortest.items() for _ in range(NUM_SWEEPS)]


def _time(engine: Steps, num_rows: int, num_sequences: int) -> float:
    works = list(_works(num_rows, num_sequences))
    seconds = engine.step(Batch(works)).forward_s
    engine.step(Batch([], [emptied(work.seq) for work in works]))
    return seconds


def _works(num_rows: int, num_sequences: int) -> Iterator[Work]:
    for seq in range(num_sequences):
        share = num_rows // num_sequences + (seq < num_rows % num_sequences)
        yield Work(
            seq=seq,
            start=0,
            tokens=np.zeros(share, "<i4").tobytes(),
            num_draft=share - 1,
            samples=True,
            num_prompt=1,
            params=SamplingParams(),
            rule="greedy",
            seed=0,
        )
