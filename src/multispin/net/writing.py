"""A text in progress on a device, over as many links as it takes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from multispin.core.device import Committed, DeviceSession
from multispin.core.speculation import SpeculationStats
from multispin.errors import PeerError
from multispin.net.link import Channel, DeviceLink, LinkLost
from multispin.wire.frames import Close, Open, Opened, Resume, Verdict

if TYPE_CHECKING:
    from multispin.net.device import Device, Request

# Messages went astray: the two sides do not mean the same, and the device says where it stands.
ASTRAY = frozenset({"abandoned", "bad_frame", "digest_mismatch", "out_of_order", "unknown_session"})
MAX_VAIN = 3  # so often, with no token in between
# Who has begun a text waits for a place; who has not is told that there is none.
LEAVING = frozenset({"draining", "loading"})
BUSY = LEAVING | {"overloaded", "rate_limited"}

T = TypeVar("T")


class _Place(NamedTuple):
    """A session on a link: whose answers come by the channel."""

    link: DeviceLink
    channel: Channel


class Writing:
    """A session in progress: ``async for committed in writing``.

    Drafting, uploading and taking verdicts go on side by side. When the link is lost the next one
    is sought, and meanwhile drafted tokens may be told of as provisional.
    """

    session: DeviceSession

    def __init__(self, device: Device, request: Request, seq: int) -> None:
        self._device = device
        self._request = request
        self._seq = seq
        self._place: _Place | None = None
        self._in_place = contextlib.ExitStack()
        self._may_draft = asyncio.Event()
        self._may_send = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._seeking: asyncio.Task[tuple[Open, Opened]] | None = None
        self._has_news = asyncio.Event()  # while it seeks
        self._failure: BaseException | None = None  # of drafting
        self._num_vain = 0

    @property
    def stats(self) -> SpeculationStats:
        stats, place = self.session.stats, self._place
        assert place is not None
        stats.uplink_bytes = place.channel.uplink_bytes
        stats.downlink_bytes = place.channel.downlink_bytes
        return stats

    async def __aiter__(self) -> AsyncIterator[Committed]:
        await self._stop()  # of an iteration that was left
        if self.session.request.draft_length:
            self._tasks = [asyncio.create_task(self._draft()), asyncio.create_task(self._send())]
        for task in self._tasks:
            task.add_done_callback(self._tell)
        try:
            while self.session.finish is None:
                committed = await self._next()
                if committed is not None:
                    yield committed
        finally:
            await self._stop()

    async def _stop(self) -> None:
        """Nothing more is drafted or sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _next(self) -> Committed | None:
        if self._seeking is not None:
            return await self._go_on(self._seeking)
        assert self._place is not None
        try:
            verdict = await self._place.channel.receive(Verdict)
            committed = self.session.apply(verdict, self._device.clock())
        except PeerError as error:
            if not self._is_curable(error):
                raise
            self._seek(is_alone=isinstance(error, LinkLost))
            return None
        self._num_vain = 0
        self._wake()
        return committed

    def _wake(self) -> None:
        self._may_draft.set()
        self._may_send.set()

    # --- drafts --------------------------------------------------------------------------------

    async def _draft(self) -> None:
        session, device = self.session, self._device
        done = device.clock()
        while session.finish is None:
            job = session.job()
            if job is None:
                # Verdicts on other texts teach the device, too, and may have ended this draft.
                self._may_send.set()
                self._may_draft.clear()
                await self._may_draft.wait()
                done = device.clock()
                continue
            done = await device.draft(session, job, done)
            self._may_send.set()
            self._has_news.set()

    async def _send(self) -> None:
        session = self.session
        while session.finish is None:
            if session.sends_now and self._seeking is None:
                assert self._place is not None
                channel, draft = self._place.channel, session.message()
                await self._device.upload(channel, draft, session.upload_bits_per_s)
            else:
                if session.job() is not None:  # or may have begun it anew
                    self._may_draft.set()
                self._may_send.clear()
                await self._may_send.wait()

    def _tell(self, task: asyncio.Task[None]) -> None:
        """What went wrong while drafting is raised where news are awaited."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._failure = error
        self._has_news.set()
        if self._place is not None:
            self._place.channel.fail(error)

    # --- from link to link ---------------------------------------------------------------------

    async def open(self) -> None:
        """Begin the session; raise what the server has against it."""
        self.session = await self._until_answered(self._begin, LEAVING)

    async def _begin(self) -> DeviceSession:
        link, channel = await self._take_place()
        message = self._device.order(self._request, link, channel)
        opened = await _ask(channel, message)
        return self._device.session(message, opened, self._seq, link.welcome)

    async def close(self) -> None:
        """Leave; a text that has not ended is no longer wanted."""
        try:
            await self._stop()  # whoever left its iteration may not have ended that
            if self._seeking is not None:
                self._seeking.cancel()
                await asyncio.gather(self._seeking, return_exceptions=True)
        finally:  # whoever is cancelled twice must not leave it to the server to write on
            await self._give_up_place()

    async def _give_up_place(self) -> None:
        has_ended = hasattr(self, "session") and self.session.finish is not None
        try:
            if self._place is not None and not has_ended:
                await self._place.channel.send(Close(self._place.channel.number))
        finally:
            self._in_place.close()

    def _is_curable(self, error: PeerError) -> bool:
        """Whether to go on where the device stands: on another link, or, if it was no more than
        messages that went astray, on this one."""
        if not self._device.outlasts_links:
            return False
        if error.code in ASTRAY:
            self._num_vain += 1
            return self._num_vain <= MAX_VAIN
        return isinstance(error, LinkLost)

    def _seek(self, *, is_alone: bool) -> None:
        if is_alone and self._device.offline == "draft" and self._request.provisional:
            self.session.go_on_alone()
            self._may_draft.set()
        self._has_news.set()
        self._seeking = asyncio.create_task(self._until_answered(self._resume, BUSY))
        self._seeking.add_done_callback(lambda _: self._has_news.set())

    async def _go_on(self, seeking: asyncio.Task[tuple[Open, Opened]]) -> Committed | None:
        """What is drafted alone; then what was committed before the link was lost."""
        await self._has_news.wait()
        self._has_news.clear()
        if self._failure is not None:
            raise self._failure
        if not seeking.done():
            return self.session.provisional()
        request, opened = seeking.result()
        self._seeking = None
        assert self._place is not None
        committed = self.session.resume(request, opened, self._place.link.welcome)
        self._wake()
        return committed

    async def _until_answered(
        self, ask: Callable[[], Coroutine[Any, Any, T]], busy: frozenset[str]
    ) -> T:
        """Until a server says yes: those that are ``busy``, or lost meanwhile, are asked again."""
        backoff = self._device.line.backoff()
        while True:
            try:
                return await ask()
            except PeerError as error:
                is_link_up = not isinstance(error, LinkLost)
                if is_link_up and error.code in busy and self._device.outlasts_links:
                    await asyncio.sleep(backoff.next_s(error.retry_after_s))
                elif not self._is_curable(error):
                    raise

    async def _resume(self) -> tuple[Open, Opened]:
        """As the server has the session, or anew with what is committed here."""
        before = self._place
        link, channel = await self._take_place()
        request = self.session.reopening(channel.number, link.welcome)
        resumption = self.session.resumption(channel.number)
        if resumption is not None:
            try:
                return request, await _ask(channel, resumption)
            except LinkLost:
                raise
            except PeerError as error:
                if error.code not in ("digest_mismatch", "unknown_session"):
                    raise
        elif before is not None and before.link is link:
            await channel.send(Close(before.channel.number))
        return request, await _ask(channel, request)

    async def _take_place(self) -> _Place:
        """A channel of the link that is up, or of the next one."""
        link = await self._device.line.link(waits=self._device.offline != "fail")
        self._in_place.close()
        channel = self._in_place.enter_context(link.channel())
        if self._place is not None:
            channel.uplink_bytes = self._place.channel.uplink_bytes
            channel.downlink_bytes = self._place.channel.downlink_bytes
        self._place = _Place(link, channel)
        return self._place


async def _ask(channel: Channel, message: Open | Resume) -> Opened:
    await channel.send(message)
    return await channel.receive(Opened)
