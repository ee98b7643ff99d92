"""What one row of acceptance costs at a large vocabulary, on one core.

Run: python benchmarks/acceptance.py [--rows 64]

Measured: the wall time per row of the public ``verify`` on drafts of 8 tokens of which every one is
accepted (9 rows each, the most work a draft can be; ``tops`` is the part of the time that no rule
can avoid, one pass over the row), the cost of a rejection, and of the device's ``choose`` and
``propose``. Rows are float32, Gaussian (sigma 2) with five peaks at +10 to +20, as a language
model's are, or flat, without peaks, the worst case for skipping. Each row is fresh (9 rows exceed
the L2 cache). Median of the repetitions. Nothing is written; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from multispin.acceptance import Context, certain, choose, propose, verify
from multispin.types import AcceptanceRule, SamplingParams

VOCABULARY = 151_936
LENGTH = 8
SETTINGS: dict[str, SamplingParams] = {
    "T 0.8": SamplingParams(temperature=0.8),
    "T 0.8, top-p .95": SamplingParams(temperature=0.8, top_p=0.95),
    "T 0.8, top-k 40": SamplingParams(temperature=0.8, top_k=40),
    "T 0.8, min-p .05": SamplingParams(temperature=0.8, min_p=0.05),
    "T 0.8, penalties": SamplingParams(
        temperature=0.8, repetition_penalty=1.1, frequency_penalty=0.1
    ),
}
CONTEXT = Context(np.arange(1000, dtype=np.int32), 500)


def make_logits(rng: np.random.Generator, rows: int, peaks: int) -> np.ndarray:
    logits = rng.normal(0.0, 2.0, (rows, VOCABULARY)).astype(np.float32)
    for row in logits:
        row[rng.integers(0, VOCABULARY, peaks)] = rng.uniform(10.0, 20.0, peaks)
    return logits


def median_ms(work: Callable[[int], object], repeats: int) -> float:
    times = []
    for i in range(repeats):
        start = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def own_draft(
    logits: np.ndarray, params: SamplingParams, rule: AcceptanceRule, seed: int
) -> np.ndarray:
    """The tokens that the target itself chooses, so that all of them are accepted."""
    draft = np.empty(0, dtype=np.int32)
    for _ in range(LENGTH):
        rows = logits[: len(draft) + 1].copy()  # penalties write to the rows
        token = verify(rows, draft, params, rule, seed, CONTEXT).token
        draft = np.append(draft, np.int32(token))
    return draft


def time_verify(logits: np.ndarray, params: SamplingParams, rule: AcceptanceRule) -> float:
    """Milliseconds per row where the whole draft is accepted."""
    chunks = logits.reshape(-1, LENGTH + 1, VOCABULARY)
    drafts = [
        own_draft(chunk, params, "greedy" if rule == "greedy" else "coupled", i)
        for i, chunk in enumerate(chunks)
    ]
    # Certain proposals of likely tokens: p(x) decides, most are accepted; rows are counted.
    rows = [0] * len(chunks)

    def work(i: int) -> None:
        proposals = [certain(int(x)) for x in drafts[i]] if rule == "rejection" else None
        verdict = verify(copies[i], drafts[i], params, rule, i, CONTEXT, proposals)
        rows[i] = verdict.num_accepted + 1

    times = []
    for _ in range(3):
        copies = chunks.copy()
        times += [median_ms(lambda _, i=i: work(i), 1) / rows[i] for i in range(len(chunks))]
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=72, help="rows of each kind (multiple of 9)")
    num_rows = max(1, parser.parse_args().rows // (LENGTH + 1)) * (LENGTH + 1)
    rng = np.random.default_rng(0)
    results: dict[str, float] = {}
    print(f"milliseconds per row of {VOCABULARY:,} logits, {num_rows} rows of each kind, one core")
    for kind, peaks in (("peaked", 5), ("flat", 0)):
        logits = make_logits(rng, num_rows, peaks)
        results[f"{kind} | floor: one maximum over the row"] = median_ms(
            lambda i, logits=logits: logits[i % num_rows].max(), num_rows
        )
        results[f"{kind} | verify greedy"] = time_verify(logits, SamplingParams(), "greedy")
        for name, params in SETTINGS.items():
            for rule in ("coupled", "rejection"):
                results[f"{kind} | verify {rule}, {name}"] = time_verify(logits, params, rule)
        for name in ("T 0.8", "T 0.8, top-p .95"):
            params = SETTINGS[name]
            results[f"{kind} | choose coupled, {name}"] = median_ms(
                lambda i, p=params, x=logits: choose(x[i % num_rows], p, "coupled", i, CONTEXT),
                num_rows,
            )
            results[f"{kind} | propose top 32, {name}"] = median_ms(
                lambda i, p=params, x=logits: propose(x[i % num_rows], p, i, CONTEXT, 32),
                num_rows,
            )
            fresh = logits.copy()
            # The least likely token for certain: always rejected, so the residual is drawn.
            unlikely = [int(row.argmin()) for row in logits]
            results[f"{kind} | reject and correct, {name}"] = median_ms(
                lambda i, p=params, x=fresh, u=unlikely: verify(
                    x[i : i + 2],
                    np.array([u[i]], dtype=np.int32),
                    p,
                    "rejection",
                    i,
                    CONTEXT,
                    [certain(u[i])],
                ),
                num_rows - 1,
            )
    for name, ms in results.items():
        print(f"{name:58} {ms:7.3f}")
    print(json.dumps({"vocabulary": VOCABULARY, "ms_per_row": results}))


if __name__ == "__main__":
    main()
