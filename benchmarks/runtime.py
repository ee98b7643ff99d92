"""What the runtime costs around ``llama_decode``, for a batch of 8 rows.

    python benchmarks/runtime.py MODEL [--batches 40] [--threads 2]

Eight sessions send an empty draft each, the dearest way to 8 rows: eight frames come in, every row
is judged by itself, eight verdicts go out. Measured from the bytes of the draft frames
to the bytes of the verdict frames, with the engine in its child process as in `multispin serve`;
taken off is the time inside ``llama_decode`` itself. What is left is ours: frames, bookkeeping,
the child process, row building, reading logits, acceptance. Network excluded.

The ceiling is 0 ms. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import Any

import numpy as np

from multispin.catalog import find_model
from multispin.core.limits import ServerLimits
from multispin.core.server import ServerCore
from multispin.lm.base import Rows
from multispin.lm.llama import LlamaModel
from multispin.net.engine_process import EngineProcess
from multispin.net.loading import TargetOptions
from multispin.types import AcceptanceRule, SamplingParams
from multispin.wire import frames
from multispin.wire.frames import Draft, Open, PrefixDigest, Verdict

NUM_SESSIONS = 8
PROMPT = "def quicksort(items: list[int]) -> list[int]:\n    "
CASES: tuple[tuple[str, AcceptanceRule, SamplingParams], ...] = (
    ("greedy", "greedy", SamplingParams()),
    ("coupled, temperature 0.8", "coupled", SamplingParams(temperature=0.8)),
    ("coupled, top-p .95", "coupled", SamplingParams(temperature=0.8, top_p=0.95)),
)


async def measure(
    engine: EngineProcess,
    core: ServerCore,
    rule: AcceptanceRule,
    params: SamplingParams,
    num_batches: int,
) -> dict[str, float]:
    prompt = await engine.tokenize(PROMPT, parse_special=False)
    lengths = [len(prompt)] * NUM_SESSIONS
    digests = [PrefixDigest() for _ in lengths]
    core.connect("link", 1.0)
    for session, digest in enumerate(digests):
        core.open("link", Open(session, PROMPT, params, rule, session, 400, 1), prompt)
        digest.update(prompt)
    while (batch := core.next_batch()) is not None:
        core.complete(await engine.step(batch))
    around, forward = [], []
    for _ in range(num_batches):
        data = [
            frames.encode(Draft(session, 0, length, digest.digest(), b""))
            for session, (length, digest) in enumerate(zip(lengths, digests, strict=True))
        ]
        before = core.counters.forward_s
        began = time.perf_counter()
        for message in data:
            core.draft("link", frames.decode_from_device(message))  # type: ignore[arg-type]
        batch = core.next_batch()
        assert batch is not None and batch.num_rows == NUM_SESSIONS
        verdicts = [frame for _, frame in core.complete(await engine.step(batch))]
        for verdict in verdicts:
            frames.encode(verdict)
        total = time.perf_counter() - began
        forward.append(core.counters.forward_s - before)
        around.append(total - forward[-1])
        for verdict in verdicts:
            assert isinstance(verdict, Verdict) and verdict.finish is None
            digests[verdict.session].update([verdict.token])
            lengths[verdict.session] += 1
    core.drop("link")
    return {
        "batches": len(around),
        "forward_ms": 1e3 * float(np.median(forward)),
        "around_forward_ms": 1e3 * float(np.median(around)),
    }


def around_decode(options: TargetOptions) -> tuple[float, float]:
    """Milliseconds of ``forward`` outside ``llama_decode``, and inside, for 8 rows of logits."""
    model = LlamaModel(
        path=options.path or "",
        name=options.target,
        num_sequences=options.num_sequences,
        context_length=options.context_length,
        threads=options.threads,
    )
    inside = [0.0]
    decode = model._c.llama_decode

    def timed(context: Any, batch: Any) -> int:
        began = time.perf_counter()
        code: int = decode(context, batch)
        inside[0] += time.perf_counter() - began
        return code

    model._c.llama_decode = timed
    seq = np.arange(NUM_SESSIONS, dtype=np.int32)
    rows = Rows(seq, seq * 0, seq + 100, np.ones(len(seq), np.bool_))
    outside, decodes = [], []
    for _ in range(12):
        inside[0] = 0.0
        began = time.perf_counter()
        model.forward(rows)
        outside.append(time.perf_counter() - began - inside[0])
        decodes.append(inside[0])
        for sequence in range(NUM_SESSIONS):
            model.free(sequence)
    model._c.llama_decode = decode
    model.close()
    return 1e3 * float(np.median(outside[2:])), 1e3 * float(np.median(decodes[2:]))


async def run(options: TargetOptions, num_batches: int) -> dict[str, Any]:
    engine = EngineProcess(options)
    await engine.start()
    try:
        core = ServerCore(engine.info, ServerLimits(), time.monotonic)
        cases = {
            name: await measure(engine, core, rule, params, num_batches)
            for name, rule, params in CASES
        }
    finally:
        await engine.close()
    outside, _ = around_decode(options)
    for case in cases.values():
        decode = case["forward_ms"] - outside
        case["decode_ms"] = decode
        case["around_decode_ms"] = case["around_forward_ms"] + outside
        case["share_of_decode"] = case["around_decode_ms"] / decode
    return {"benchmark": "runtime", "target": options.target, "rows": 8, "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    options = TargetOptions(
        target=arguments.model,
        path=os.fspath(find_model(arguments.model)),
        num_sequences=NUM_SESSIONS,
        context_length=512,
        threads=arguments.threads,
        gpu_layers=0,
        reproducible=False,
        max_rows=64,
    )
    print(__doc__.split("\n\n", maxsplit=2)[2])
    result = asyncio.run(run(options, arguments.batches))
    print(f"{'':28}{'decode, ms':>12}{'around, ms':>12}{'share':>8}")
    for name, case in result["cases"].items():
        print(
            f"{name:28}{case['decode_ms']:12.1f}{case['around_decode_ms']:12.2f}"
            f"{case['share_of_decode']:8.1%}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
