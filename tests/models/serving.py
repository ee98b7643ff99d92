"""A real server process with a real model, and devices on real WebSockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from multispin.catalog import find_model
from multispin.net.device import Device, Request
from multispin.net.drafting import DrafterOptions, connect
from multispin.types import AcceptanceRule, SamplingParams
from multispin.wire.frames import ChatMessage


@contextmanager
def serving(target: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    find_model(target)
    process = subprocess.Popen(
        [sys.executable, "-m", "multispin", "serve", "--target", target, "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        yield process, address
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def device(address: str, draft: str, num_sequences: int = 1) -> Device:
    path = None if draft in ("none", "lookup", "ngram") else os.fspath(find_model(draft))
    options = DrafterOptions(
        draft, path, num_sequences=num_sequences, context_length=1024, threads=2
    )
    return await connect(address, options)


def request(
    prompt: str | list[ChatMessage],
    *,
    temperature: float = 0.0,
    draft_length: int = 4,
    seed: int = 11,
    max_tokens: int = 48,
) -> Request:
    rule: AcceptanceRule = "coupled" if temperature else "greedy"
    params = SamplingParams(temperature=temperature)
    return Request(prompt, params, rule, seed, max_tokens, draft_length, [])


async def ids_of(device: Device, request: Request) -> list[int]:
    async with device.write(request) as writing:
        async for _ in writing:
            pass
        return writing.session.committed
