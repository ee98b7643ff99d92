"""asyncio around core.device: draft, send, take the verdict, until the text ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec

from multispin.core.device import Committed, DeviceSession, SpeculationStats
from multispin.core.drafter import Drafter
from multispin.errors import PeerError
from multispin.net.link import Channel, DeviceLink
from multispin.types import AcceptanceRule, SamplingParams
from multispin.wire import frames
from multispin.wire.frames import ChatMessage, Close, Draft, Open, Opened, Verdict

T = TypeVar("T")


class Request(NamedTuple):
    """One text to be written."""

    prompt: str | list[ChatMessage]
    params: SamplingParams
    rule: AcceptanceRule
    seed: int
    max_tokens: int
    draft_length: int
    stop: list[str]


class Device:
    """A drafter on a link. ``draft_s_per_token`` makes it as slow as the device it stands for."""

    def __init__(
        self,
        link: DeviceLink,
        drafter: Drafter | None,
        *,
        draft_s_per_token: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.link = link
        self._drafter = drafter
        self._draft_s_per_token = draft_s_per_token
        self._clock = clock
        self._uplink_free_at = 0.0
        # A language model runs one draft at a time; the link stays responsive meanwhile.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="drafter")
        self._free_seqs = list(range(drafter.num_sequences if drafter else 0))[::-1]

    @contextlib.asynccontextmanager
    async def write(self, request: Request) -> AsyncIterator[Writing]:
        """Open a session; iterate over it for what is committed. Leaving early closes it."""
        if self._drafter is not None and not self._free_seqs:
            raise PeerError("the drafter has no sequence left", code="overloaded")
        seq = self._free_seqs.pop() if self._drafter else 0
        try:
            with self.link.channel() as channel:
                session = await self._open(channel, request, seq)
                try:
                    yield Writing(self, channel, session)
                finally:
                    if session.finish is None:
                        await channel.send(Close(channel.number))
        finally:
            if self._drafter is not None:
                await self._compute(self._drafter.free, seq)
                self._free_seqs.append(seq)

    async def _open(self, channel: Channel, request: Request, seq: int) -> DeviceSession:
        message = Open(
            session=channel.number,
            prompt=request.prompt,
            params=request.params,
            rule=request.rule,
            seed=request.seed,
            max_tokens=request.max_tokens,
            draft_length=request.draft_length if self._drafter else 0,
            stop=request.stop,
            wants_text=self._drafter is None or self._drafter.vocabulary is None,
        )
        await channel.send(message)
        opened = await channel.receive(Opened)
        welcome = self.link.welcome
        return DeviceSession(
            message, opened, self._drafter, seq, welcome.vocabulary_size, welcome.context_length
        )

    async def advance(self, channel: Channel, session: DeviceSession) -> Committed:
        """One round: draft if it is this side's turn, then wait for the verdict."""
        if session.owes_draft:
            began = self._clock()
            draft, num_tokens = await self._compute(session.make_draft)
            spare_s = num_tokens * self._draft_s_per_token - (self._clock() - began)
            if spare_s > 0:
                await asyncio.sleep(spare_s)
            drafting_us = round(1e6 * (self._clock() - began))
            draft = msgspec.structs.replace(draft, drafting_us=drafting_us)
            await self._take_turn(draft, session.upload_bits_per_s)
            await channel.send(draft)
        while True:
            committed = session.apply(await channel.receive(Verdict))
            if committed is not None:
                return committed

    async def _take_turn(self, draft: Draft, bits_per_s: int) -> None:
        """Keep this device's uploads, headers included, within the rate that it was granted."""
        if bits_per_s:
            num_bits = 8 * len(frames.encode(draft)) + frames.TRANSPORT_BITS
            self._uplink_free_at = max(self._uplink_free_at, self._clock()) + num_bits / bits_per_s
            await asyncio.sleep(self._uplink_free_at - self._clock())

    async def close(self) -> None:
        await self.link.close()
        self._executor.shutdown()

    async def _compute(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


class Writing:
    """A session in progress: ``async for committed in writing``."""

    def __init__(self, device: Device, channel: Channel, session: DeviceSession) -> None:
        self.session = session
        self._device = device
        self._channel = channel

    @property
    def stats(self) -> SpeculationStats:
        stats = self.session.stats
        stats.uplink_bytes = self._channel.uplink_bytes
        stats.downlink_bytes = self._channel.downlink_bytes
        return stats

    async def __aiter__(self) -> AsyncIterator[Committed]:
        while self.session.finish is None:
            yield await self._device.advance(self._channel, self.session)
