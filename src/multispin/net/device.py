"""asyncio around core.device: draft, send, take the verdict, until the text ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from multispin.core.confidence import Calibration
from multispin.core.device import Committed, DeviceSession, Job, SpeculationStats
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
    trace: str = ""  # of whoever wants it, as W3C traceparent
    # As in wire.frames.Open:
    num_logprobs: int = -1
    json_schema: str = ""
    tools: str = ""


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
        self.clock = clock
        self._calibration = Calibration()
        self._uplink_free_at = 0.0
        # A language model runs one draft at a time; the link stays responsive meanwhile.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="drafter")
        self._free_seqs: list[int] = []
        self._num_seqs = 0  # that were ever taken

    @contextlib.asynccontextmanager
    async def write(self, request: Request) -> AsyncIterator[Writing]:
        """Open a session; iterate over it for what is committed. Leaving early closes it."""
        seq = self._take_seq()
        try:
            with self.link.channel() as channel:
                session = None
                try:
                    session = await self._open(channel, request, seq)
                    yield Writing(self, channel, session)
                finally:
                    if session is None or session.finish is None:
                        await channel.send(Close(channel.number))
        finally:
            if self._drafter is not None:
                await self._compute(self._drafter.free, seq)
            self._free_seqs.append(seq)

    def _take_seq(self) -> int:
        if self._free_seqs:
            return self._free_seqs.pop()
        if self._drafter is not None and self._num_seqs == self._drafter.num_sequences:
            raise PeerError("the drafter has no sequence left", code="overloaded")
        self._num_seqs += 1
        return self._num_seqs - 1

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
            trace=self._trace(channel, request),
            num_logprobs=request.num_logprobs,
            json_schema=request.json_schema,
            tools=request.tools,
        )
        await channel.send(message)
        opened = await channel.receive(Opened)
        return DeviceSession(
            message, opened, self._drafter, seq, self.link.welcome, self._calibration
        )

    def _trace(self, channel: Channel, request: Request) -> str:
        trace = request.trace
        for observer in self.link.observers:
            trace = observer.opening(self.link.number, channel.number, trace)
        return trace

    async def draft(self, session: DeviceSession, job: Job, began: float) -> float:
        """Draft, as slowly as the device that this one stands for; when it was done."""
        drafted = await self._compute(session.draft, job)
        done = max(began + drafted.num_computed * self._draft_s_per_token, self.clock())
        await self._sleep_until(done)
        session.add(job, drafted, done - began)
        return done

    async def upload(self, channel: Channel, draft: Draft, bits_per_s: int) -> None:
        """Keep this device's uploads, headers included, within the rate that it was granted."""
        for observer in self.link.observers:
            observer.drafted(self.link.number, draft)
        if bits_per_s:
            num_bits = 8 * len(frames.encode(draft)) + frames.TRANSPORT_BITS
            self._uplink_free_at = max(self._uplink_free_at, self.clock()) + num_bits / bits_per_s
            await self._sleep_until(self._uplink_free_at)
        await channel.send(draft)

    async def _sleep_until(self, moment: float) -> None:
        if (seconds := moment - self.clock()) > 0:
            await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self.link.close()
        self._executor.shutdown()

    async def _compute(self, work: Callable[..., T], *args: object) -> T:
        if self._drafter is not None and self._drafter.is_light:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


class Writing:
    """A session in progress: ``async for committed in writing``.

    Drafting, uploading and taking verdicts go on side by side.
    """

    def __init__(self, device: Device, channel: Channel, session: DeviceSession) -> None:
        self.session = session
        self._device = device
        self._channel = channel
        self._may_draft = asyncio.Event()
        self._may_send = asyncio.Event()

    @property
    def stats(self) -> SpeculationStats:
        stats = self.session.stats
        stats.uplink_bytes = self._channel.uplink_bytes
        stats.downlink_bytes = self._channel.downlink_bytes
        return stats

    async def __aiter__(self) -> AsyncIterator[Committed]:
        tasks = []
        if self.session.request.draft_length:
            tasks = [asyncio.create_task(self._draft()), asyncio.create_task(self._send())]
        for task in tasks:
            task.add_done_callback(self._tell)
        try:
            while self.session.finish is None:
                committed = self.session.apply(
                    await self._channel.receive(Verdict), self._device.clock()
                )
                self._may_draft.set()
                self._may_send.set()
                if committed is not None:
                    yield committed
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _draft(self) -> None:
        session, device = self.session, self._device
        done = device.clock()
        while session.finish is None:
            job = session.job()
            if job is None:
                self._may_draft.clear()
                await self._may_draft.wait()
                done = device.clock()
                continue
            done = await device.draft(session, job, done)
            self._may_send.set()

    async def _send(self) -> None:
        session = self.session
        while session.finish is None:
            if session.sends_now:
                draft = session.message()
                await self._device.upload(self._channel, draft, session.upload_bits_per_s)
            else:
                self._may_send.clear()
                await self._may_send.wait()

    def _tell(self, task: asyncio.Task[None]) -> None:
        """What went wrong while drafting is raised where verdicts are awaited."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._channel.fail(error)
