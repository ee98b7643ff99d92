"""What a verification pass costs on this machine, by rows and sequences, and the line through it.

    seconds = verify_fixed_s + verify_per_device_s * sequences + verify_per_token_s * rows

is what CELL.toml asks for. Real curves have steps (three rows can cost more than four), so that the
table is as much of a result as the fit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

from multispin.core.cost import CostEngine
from multispin.core.engine import Batch, Engine, StepResult, Work, emptied
from multispin.errors import BadInput
from multispin.types import SamplingParams, TokenIds

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
CONTEXT_TOKENS = 72  # at the start; each pass adds what it commits
MAX_CONTEXT_TOKENS = 128  # a sequence that outgrew this starts anew
NUM_SWEEPS = 5  # timed; one more before them warms up

Tell = Callable[[str], None]


@dataclass(frozen=True)
class BatchTime:
    """One verification pass: ``rows`` spread evenly over ``sequences``."""

    rows: int
    sequences: int
    seconds: float


@dataclass(frozen=True)
class VerificationCurve:
    """The fit, and how far the measurements lie from it, as shares of the measured times."""

    fixed_s: float
    per_device_s: float
    per_token_s: float
    mean_error: float
    max_error: float

    def seconds(self, rows: int, sequences: int) -> float:
        return self.fixed_s + self.per_device_s * sequences + self.per_token_s * rows


def batch_shapes(num_sequences: int) -> list[tuple[int, int]]:
    """(rows, sequences) to measure: each count of rows in one sequence, in few, and in most."""
    return [
        (rows, spread)
        for rows in ROWS
        for spread in sorted({1, min(-(-rows // 4), num_sequences), min(rows, num_sequences)})
    ]


def measure_batches(
    engine: Engine,
    text: TokenIds,
    tell: Tell,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[BatchTime]:
    """Median time of a pass, judging included, for every shape of `batch_shapes`.

    Contexts are of ``CONTEXT_TOKENS`` to ``MAX_CONTEXT_TOKENS`` tokens out of ``text``. All shapes
    take turns, so that a slow minute of the machine does not fall on one of them, and so do the
    sequences, so that their contexts grow alike.
    """
    num_sequences = min(engine.info.num_sequences, max(ROWS))
    shapes = [s for s in batch_shapes(num_sequences) if s[0] <= engine.info.max_rows]
    pool = _Sequences(engine, np.resize(text, CONTEXT_TOKENS), num_sequences)
    times: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for sweep in range(NUM_SWEEPS + 1):
        label = f"sweep {sweep} of {NUM_SWEEPS}" if sweep else "warming up"
        tell(f"verification: {label}, {len(shapes)} batches of up to {max(ROWS)} rows")
        for rows, sequences in shapes:
            batch = pool.batch(rows, sequences)
            began = clock()
            result = engine.step(batch)
            seconds = clock() - began
            pool.grow(batch, result)
            if sweep:
                times[rows, sequences].append(seconds)
    return [
        BatchTime(rows, sequences, statistics.median(measured))
        for (rows, sequences), measured in times.items()
    ]


def fit_curve(times: Sequence[BatchTime]) -> VerificationCurve:
    """The line with coefficients of 0 or more whose relative errors have the least squares.

    Raises BadInput for times that are not positive.
    """
    seconds = np.array([batch.seconds for batch in times], np.float64)
    if len(seconds) == 0 or not (np.isfinite(seconds) & (seconds > 0)).all():
        raise BadInput("batch times", seconds.tolist(), "must be positive numbers of seconds")
    terms = np.array([(1.0, batch.sequences, batch.rows) for batch in times], np.float64)
    coefficients, _ = nnls(terms / seconds[:, None], np.ones(len(seconds)))
    errors = np.abs(terms @ coefficients / seconds - 1.0)
    fixed_s, per_device_s, per_token_s = coefficients.tolist()
    return VerificationCurve(
        fixed_s, per_device_s, per_token_s, float(errors.mean()), float(errors.max())
    )


def by_rows(times: Sequence[BatchTime]) -> dict[int, float]:
    """Median seconds of each number of rows, however they spread; the last two do not fall."""
    rows = sorted({batch.rows for batch in times})
    seconds = [statistics.median(batch.seconds for batch in times if batch.rows == n) for n in rows]
    seconds[-1] = max(seconds[-2:])
    return dict(zip(rows, seconds, strict=True))


def fill(engine: Engine | CostEngine, seq: int, tokens: TokenIds) -> None:
    """Empty a sequence and feed it these tokens, judging nothing."""
    copies = [emptied(seq)]
    for start in range(0, len(tokens), engine.info.max_rows):
        chunk = tokens[start : start + engine.info.max_rows]
        work = Work(
            seq=seq,
            start=start,
            tokens=chunk.astype("<i4").tobytes(),
            num_draft=0,
            samples=False,
            num_prompt=len(tokens),
            params=SamplingParams(),
            rule="greedy",
            seed=0,
        )
        engine.step(Batch([work], copies))
        copies = []


class _Sequences:
    """Sequences that take turns in batches of drafts nobody would accept: shuffled words."""

    def __init__(self, engine: Engine, context: TokenIds, num_sequences: int) -> None:
        self._engine = engine
        self._context = context
        self._lengths = [MAX_CONTEXT_TOKENS + 1] * num_sequences  # to be filled on first use
        self._next = 0
        self._random = np.random.default_rng(0)

    def batch(self, rows: int, sequences: int) -> Batch:
        works = []
        for index in range(sequences):
            seq = self._next
            self._next = (seq + 1) % len(self._lengths)
            if self._lengths[seq] > MAX_CONTEXT_TOKENS:
                fill(self._engine, seq, self._context)
                self._lengths[seq] = len(self._context)
            share = rows // sequences + (index < rows % sequences)
            works.append(
                Work(
                    seq=seq,
                    start=self._lengths[seq],
                    tokens=self._random.choice(self._context, share).astype("<i4").tobytes(),
                    num_draft=share - 1,
                    samples=True,
                    num_prompt=len(self._context),
                    params=SamplingParams(),
                    rule="greedy",
                    seed=0,
                )
            )
        return Batch(works)

    def grow(self, batch: Batch, result: StepResult) -> None:
        for work, outcome in zip(batch.works, result.outcomes, strict=True):
            self._lengths[work.seq] += 1 + outcome.num_accepted
