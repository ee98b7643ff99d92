"""What a batch of n rows costs in llama.cpp, and what everything of ours around it costs.

    python benchmarks/llama_batches.py MODEL.gguf [--threads 2] [--reproducible]

Rows are spread over up to eight sequences with a context of about 100 tokens each. `around` is the
time of `forward` (logits asked for on every row) less that of the `llama_decode` calls inside it.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from multispin.lm.base import Rows
from multispin.lm.llama import LlamaModel
from multispin.lm.llama_library import load_library

NUM_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
NUM_SEQUENCES = 8
CONTEXT = 100


class TimedDecode:
    """Stands in for ``llama_decode`` and adds up its time."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, context: int, batch: Any) -> int:
        begin = time.perf_counter()
        code: int = self._function(context, batch)
        self.seconds += time.perf_counter() - begin
        return code


def batch_of(model: LlamaModel, num_rows: int) -> Rows:
    num_sequences = min(num_rows, NUM_SEQUENCES)
    counts = [len(part) for part in np.array_split(np.arange(num_rows), num_sequences)]
    seq = np.repeat(np.arange(num_sequences, dtype=np.int32), counts)
    position = np.concatenate([CONTEXT + np.arange(count, dtype=np.int32) for count in counts])
    token = (position * 7919 % model.vocabulary.size).astype(np.int32)
    return Rows(seq, position.astype(np.int32), token, np.ones(num_rows, np.bool_))


def measure(
    model: LlamaModel, decode: TimedDecode, num_rows: int, repeats: int
) -> dict[str, float]:
    """Medians over ``repeats`` batches, each rolled back afterwards, in milliseconds."""
    rows = batch_of(model, num_rows)
    in_decode, around = [], []
    for _ in range(repeats + 1):
        decode.seconds = 0.0
        begin = time.perf_counter()
        model.forward(rows)
        total = time.perf_counter() - begin
        in_decode.append(decode.seconds)
        around.append(total - decode.seconds)
        for seq in range(NUM_SEQUENCES):
            model.truncate(seq, CONTEXT)
    return {
        "rows": num_rows,
        "decode_ms": round(1e3 * float(np.median(in_decode[1:])), 2),
        "around_ms": round(1e3 * float(np.median(around[1:])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reproducible", action="store_true")
    options = parser.parse_args()
    model = LlamaModel(
        path=options.model,
        name=options.model.stem,
        num_sequences=NUM_SEQUENCES,
        context_length=CONTEXT + max(NUM_ROWS),
        threads=options.threads,
        reproducible=options.reproducible,
        max_batch_rows=CONTEXT,
    )
    prompt = (np.arange(CONTEXT, dtype=np.int32) * 31 + 100) % model.vocabulary.size
    model.forward(
        Rows(
            np.zeros(CONTEXT, np.int32),
            np.arange(CONTEXT, dtype=np.int32),
            prompt.astype(np.int32),
            np.zeros(CONTEXT, np.bool_),
        )
    )
    for seq in range(1, NUM_SEQUENCES):
        model.fork(0, seq, CONTEXT)
    decode = model._c.llama_decode = TimedDecode(model._c.llama_decode)
    results = []
    print(f"{options.model.name}, {load_library().kind}")
    print("rows  llama_decode ms  around it ms")
    for num_rows in NUM_ROWS:
        result = measure(model, decode, num_rows, options.repeats)
        results.append(result)
        print(f"{num_rows:4}  {result['decode_ms']:15.1f}  {result['around_ms']:12.3f}")
    print(
        json.dumps(
            {
                "benchmark": "llama_batches",
                "model": options.model.name,
                "threads": options.threads,
                "reproducible": options.reproducible,
                "library": load_library().describe(),
                "batches": results,
            }
        )
    )


if __name__ == "__main__":
    main()
