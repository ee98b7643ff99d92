"""A device that goes on writing while others misbehave; its texts must not change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from multispin.net.device import Device
from multispin.net.drafting import DrafterOptions, connect
from tests.core.harness import request, write
from tests.net.test_server import text_of, wanted

NUM_TEXTS = 4  # different ones
PATIENCE_S = 30.0  # for one of them


@dataclass
class Bystander:
    num_texts: int = 0

    async def run(self, device: Device) -> None:
        expected = [write(request(seed=seed), "none") for seed in range(NUM_TEXTS)]
        while True:
            seed = self.num_texts % NUM_TEXTS
            async with asyncio.timeout(PATIENCE_S):
                ids, text = await text_of(device, wanted(seed=seed))
            assert (ids, text) == (expected[seed].session.committed, expected[seed].text)
            self.num_texts += 1
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def bystander(address: str) -> AsyncIterator[Bystander]:
    """Writes all the while, and afterwards still."""
    it = Bystander()
    device = await connect(address, DrafterOptions("lookup"))
    writing = asyncio.create_task(it.run(device))
    try:
        yield it
        before = it.num_texts
        while it.num_texts < before + 2 and not writing.done():
            await asyncio.sleep(0.05)
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await device.close()
