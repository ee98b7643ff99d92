"""asyncio around core.device: draft, send, take the verdict, until the text ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from multispin.core.confidence import Calibration
from multispin.core.device import DeviceSession, Job
from multispin.core.drafter import Drafter
from multispin.errors import PeerError
from multispin.net.line import Line
from multispin.net.link import Channel
from multispin.net.router import Router
from multispin.net.writing import Writing
from multispin.types import AcceptanceRule, Offline, SamplingParams
from multispin.wire import frames
from multispin.wire.frames import ChatMessage, Draft, Open, Opened, Welcome, Wish

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
    provisional: bool = False  # who reads it can take back what was shown
    # As in wire.frames.Open:
    num_logprobs: int = -1
    json_schema: str = ""
    tools: str = ""
    wish: Wish = Wish()  # which target, where there are several


class Device:
    """A drafter on a line to a server, or on whatever else finds it servers.

    ``draft_s_per_token`` makes it as slow as the device it stands for.
    """

    def __init__(
        self,
        route: Line | Router,
        drafter: Drafter | None,
        *,
        offline: Offline = "wait",
        draft_s_per_token: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.router = route if isinstance(route, Router) else Router(route)
        self.offline = offline
        self._drafter = drafter
        self._draft_s_per_token = draft_s_per_token
        self.clock = clock
        self._calibrations: dict[str, Calibration] = {}  # for each target
        self._uplink_free_at = 0.0
        # A language model runs one draft at a time; the link stays responsive meanwhile.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="drafter")
        self._free_seqs: list[int] = []
        self._num_seqs = 0  # that were ever taken

    @property
    def line(self) -> Line:
        return self.router.line

    @property
    def outlasts_links(self) -> bool:
        """Whether texts go on when their link is lost: on the next one, or at another replica."""
        router = self.router
        return router.has_directory or (self.offline != "fail" and router.line.returns)

    @contextlib.asynccontextmanager
    async def write(self, request: Request) -> AsyncIterator[Writing]:
        """Open a session; iterate over it for what is committed. Leaving early closes it."""
        seq = self._take_seq()
        try:
            writing = Writing(self, request, seq)
            try:
                await writing.open()
                yield writing
            finally:
                await writing.close()
        finally:
            try:
                if self._drafter is not None:
                    await self._compute(self._drafter.free, seq)
            finally:  # whoever is cancelled twice must not keep it
                self._free_seqs.append(seq)

    def _take_seq(self) -> int:
        if self._free_seqs:
            return self._free_seqs.pop()
        if self._drafter is not None and self._num_seqs == self._drafter.num_sequences:
            raise PeerError("the drafter has no sequence left", code="overloaded")
        self._num_seqs += 1
        return self._num_seqs - 1

    def order(self, request: Request, channel: Channel, *, is_placed: bool) -> Open:
        """What asks the server for the text."""
        trace = request.trace
        for observer in channel.link.observers:
            trace = observer.opening(channel.link.number, channel.number, trace)
        return Open(
            session=channel.number,
            prompt=request.prompt,
            params=request.params,
            rule=request.rule,
            seed=request.seed,
            max_tokens=request.max_tokens,
            draft_length=request.draft_length if self._drafter else 0,
            stop=request.stop,
            wants_text=self._drafter is None or self._drafter.vocabulary is None,
            trace=trace,
            num_logprobs=request.num_logprobs,
            json_schema=request.json_schema,
            tools=request.tools,
            is_placed=is_placed,
        )

    def session(self, order: Open, opened: Opened, seq: int, welcome: Welcome) -> DeviceSession:
        """The text that the server has begun."""
        calibration = self._calibrations.setdefault(welcome.target, Calibration())
        return DeviceSession(order, opened, self._drafter, seq, welcome, calibration)

    async def draft(self, session: DeviceSession, job: Job, began: float) -> float:
        """Draft, as slowly as the device that this one stands for; when it was done."""
        drafted = await self._compute(session.draft, job)
        done = max(began + drafted.num_computed * self._draft_s_per_token, self.clock())
        await self._sleep_until(done)
        session.add(job, drafted, done - began)
        return done

    async def upload(self, channel: Channel, draft: Draft, bits_per_s: int) -> None:
        """Keep this device's uploads, headers included, within the rate that it was granted."""
        for observer in channel.link.observers:
            observer.drafted(channel.link.number, draft)
        if bits_per_s:
            num_bits = 8 * len(frames.encode(draft)) + frames.TRANSPORT_BITS
            self._uplink_free_at = max(self._uplink_free_at, self.clock()) + num_bits / bits_per_s
            await self._sleep_until(self._uplink_free_at)
        await channel.send(draft)

    async def _sleep_until(self, moment: float) -> None:
        if (seconds := moment - self.clock()) > 0:
            await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self.router.close()
        self._executor.shutdown()

    async def _compute(self, work: Callable[..., T], *args: object) -> T:
        if self._drafter is not None and self._drafter.is_light:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
