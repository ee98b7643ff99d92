"""Many devices that join, write, and leave as they please; every text is compared."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache

from multispin.errors import MultispinError
from multispin.net.device import Device, Request
from multispin.net.drafting import DrafterOptions, connect
from multispin.types import SamplingParams
from tests.core.harness import PROMPT, new_engine, request, write

NUM_TEXTS = 16  # different ones
PATIENCE_S = 120.0  # between two verdicts
END = 256  # the n-gram model's end of text


def bias(seed: int) -> dict[int, float]:
    """Every other text goes on until it is long enough."""
    return {END: -100.0} if seed % 2 else {}


@cache
def expected(seed: int, longest: int) -> list[int]:
    """What a server that nothing happens to writes, from the n-gram model."""
    message = request(seed=seed, max_tokens=longest, logit_bias=bias(seed))
    return write(message, "none", engine=new_engine(context_length=1024)).session.committed


def wanted(seed: int, max_tokens: int) -> Request:
    params = SamplingParams(temperature=0.8, logit_bias=bias(seed))
    return Request(PROMPT, params, "coupled", seed, max_tokens, draft_length=4, stop=[])


async def dial(address: str) -> Device:
    """A device that is being started; it waits for a server that is."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await connect(address, DrafterOptions("lookup"))
            except MultispinError as error:
                if error.code not in ("unreachable", "loading"):
                    raise
            await asyncio.sleep(0.2)


@dataclass
class Crowd:
    """``leaves`` is the probability that a text is given up, half of them by hanging up."""

    address: str
    num_devices: int
    seed: int
    leaves: float = 0.0
    lengths: tuple[int, int] = (100, 400)  # of the texts, tokens
    num_texts: int = 0  # written to their end
    num_left: int = 0  # given up
    num_tokens: int = 0
    first_after: list[float] = field(default_factory=list)  # of each device: its first token ...
    running: asyncio.Task[None] | None = None
    _since: float = 0.0  # ... after this moment

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self.num_devices):
                group.create_task(self._device(number))

    async def until_all_have_written_since(self, moment: float) -> None:
        self._since = moment
        async with asyncio.timeout(PATIENCE_S):
            while min(self.first_after) < moment:
                self.check()
                await asyncio.sleep(0.01)

    def check(self) -> None:
        """Raise what went wrong with any text."""
        if self.running is not None and self.running.done():
            self.running.result()

    async def _device(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        while True:
            device = await dial(self.address)
            try:
                for _ in range(rng.randrange(1, 5)):
                    await self._write(device, number, rng)
            finally:
                await device.close()
            if self.leaves:
                await asyncio.sleep(rng.uniform(0.0, 1.0))

    async def _write(self, device: Device, number: int, rng: random.Random) -> None:
        seed, max_tokens = rng.randrange(NUM_TEXTS), rng.randrange(*self.lengths)
        stays = rng.random() >= self.leaves
        leaves_at = max_tokens if stays else rng.randrange(max_tokens)
        async with device.write(wanted(seed, max_tokens)) as writing:
            commits = aiter(writing)
            with contextlib.suppress(StopAsyncIteration):
                while len(writing.session.committed) < leaves_at:
                    async with asyncio.timeout(PATIENCE_S):
                        committed = await anext(commits)
                    self.num_tokens += len(committed.ids)
                    if self.first_after[number] < self._since:
                        self.first_after[number] = asyncio.get_running_loop().time()
            written = writing.session.committed
            whole = expected(seed, self.lengths[1])[:max_tokens]
            assert written == (whole if stays else whole[: len(written)])
            assert writing.session.finish is not None or not stays
        self.num_texts += stays
        self.num_left += not stays


@contextlib.asynccontextmanager
async def crowd(
    address: str,
    num_devices: int,
    seed: int,
    leaves: float = 0.0,
    lengths: tuple[int, int] = (100, 400),
) -> AsyncIterator[Crowd]:
    """It is there as long as this context, and what goes wrong in it is raised."""
    for text in range(NUM_TEXTS):
        expected(text, lengths[1])
    it = Crowd(address, num_devices, seed, leaves, lengths, first_after=[0.0] * num_devices)
    it.running = asyncio.create_task(it.run())
    try:
        yield it
        it.check()
    finally:
        it.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await it.running
