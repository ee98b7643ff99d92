"""The engine's process dies; the texts do not notice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from multispin.errors import BadInput
from multispin.net.engine_process import start_engine
from multispin.net.loading import TargetOptions
from tests.models.serving import device, ids_of, request, serving

pytestmark = pytest.mark.models

PROMPT = "A radio cell is the area around a base station in which"


def health(address: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=10) as answer:
            assert json.load(answer)["status"] == "ok"
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def child_of(pid: int) -> int:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def test_the_engine_is_killed_twice_and_the_text_is_the_same() -> None:
    async def scene(server: int, address: str) -> None:
        it = await device(address, "lookup")
        message = request(PROMPT, temperature=0.8)
        expected = await ids_of(it, message)
        async with it.write(message) as writing:
            async for committed in writing:
                done = len(writing.session.committed)
                if done - len(committed.ids) < 10 <= done or done - len(committed.ids) < 25 <= done:
                    os.kill(child_of(server), signal.SIGKILL)
                    began = time.monotonic()
                    while await asyncio.to_thread(health, address) != 503:
                        assert time.monotonic() - began < 2
                        await asyncio.sleep(0.01)
            assert writing.session.committed == expected
        assert await asyncio.to_thread(health, address) == 200
        await it.close()

    with serving("smollm2-135m", "--reproducible", "--ctx-size", "512") as (process, address):
        asyncio.run(scene(process.pid, address))


def test_a_damaged_model_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(1000))
    options = TargetOptions(
        "broken", os.fspath(broken), 1, 64, 1, 0, reproducible=False, max_rows=8
    )
    with pytest.raises(BadInput, match="broken"):
        asyncio.run(start_engine(options))
