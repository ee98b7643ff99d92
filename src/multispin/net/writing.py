"""A text in progress on a device, over as many links as it takes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from multispin.core.beginning import beginning_of
from multispin.core.device import Committed, DeviceSession
from multispin.core.speculation import SpeculationStats
from multispin.errors import PeerError
from multispin.net.link import Channel, LinkLost, Redirected
from multispin.net.router import BUSY, Search, Unplaced
from multispin.wire.frames import Close, Find, Open, Opened, Resume, Verdict, Welcome, Wish

if TYPE_CHECKING:
    from multispin.net.device import Device, Request

# Messages went astray: the two sides do not mean the same, and the device says where it stands.
ASTRAY = frozenset({"abandoned", "bad_frame", "digest_mismatch", "out_of_order", "unknown_session"})
MAX_VAIN = 3  # so often, with no token in between
MAX_HURRIED = 3  # searches in a row without a pause, with no token in between
NEVER: frozenset[str] = frozenset()
OF_TEXT = ("target", "fingerprint", "reproducible")  # what a text may depend on

T = TypeVar("T")


class _Place(NamedTuple):
    """Whose answers come by the channel; ``server`` is as in Search."""

    channel: Channel
    server: str


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
        self._home: _Place | None = None  # where the session was opened or resumed last
        self._is_settled = False  # it got on there
        self._in_place = contextlib.ExitStack()
        self._may_draft = asyncio.Event()
        self._may_send = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._seeking: asyncio.Task[tuple[Open, Opened]] | None = None
        self._has_news = asyncio.Event()  # while it seeks
        self._failure: BaseException | None = None  # of drafting
        self._num_vain = 0
        self._num_searches = 0  # since the last token
        self._backoff = device.router.finder.backoff()

    @property
    def target(self) -> str:
        """Of the server that writes it."""
        assert self._home is not None
        return self._home.channel.link.welcome.target

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
            busy = BUSY if self._device.router.has_directory else NEVER
            if not self._is_curable(error, busy):
                raise
            self._seek(error)
            return None
        self._num_vain = self._num_searches = 0
        self._backoff.reset()
        self._is_settled = True
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
        search = self._search()
        self.session = await self._until_answered(self._begin, search)

    async def _begin(self, search: Search) -> DeviceSession:
        channel, server = await self._take_place(search)
        message = self._device.order(self._request, channel, is_placed=bool(server))
        opened = await self._ask(message)
        return self._device.session(message, opened, self._seq, channel.link.welcome)

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

    def _is_curable(self, error: PeerError, busy: frozenset[str]) -> bool:
        """Whether to go on where the device stands: on another link, or, if it was no more than
        messages that went astray, on this one."""
        if isinstance(error, Redirected | Unplaced):
            return True
        if not self._device.outlasts_links:
            return False
        if error.code in ASTRAY:
            self._num_vain += 1
            return self._num_vain <= MAX_VAIN
        return isinstance(error, LinkLost) or error.code in busy

    def _seek(self, error: PeerError) -> None:
        is_lost = isinstance(error, LinkLost)
        if is_lost and self._device.offline == "draft" and self._request.provisional:
            self.session.go_on_alone()
            self._may_draft.set()
        self._has_news.set()
        # A link that was merely cut leads back to the server that has the session.
        is_left = isinstance(error, Redirected) or error.code in BUSY
        leaves = is_left or (is_lost and not self._is_settled)
        self._seeking = asyncio.create_task(self._found(error if leaves else None))
        self._seeking.add_done_callback(lambda _: self._has_news.set())

    async def _found(self, leaves_for: PeerError | None) -> tuple[Open, Opened]:
        search = self._search()
        self._num_searches += 1
        if self._num_searches > MAX_HURRIED:  # whoever takes it loses it
            await asyncio.sleep(self._backoff.next_s())
        if leaves_for is not None:
            await search.failed(leaves_for)
        return await self._until_answered(self._resume, search)

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
        committed = self.session.resume(request, opened, self._place.channel.link.welcome)
        self._wake()
        return committed

    def _search(self) -> Search:
        device, request, home = self._device, self._request, self._home
        wish, last = request.wish, ""
        if home is not None:
            wish, last = Wish(wish.target or home.channel.link.welcome.target), home.server
        find = Find(0, beginning_of(request.prompt), wish, last)
        waits = device.offline != "fail"
        return Search(device.router, find, is_begun=home is not None, waits=waits)

    async def _until_answered(self, ask: Callable[[Search], Awaitable[T]], search: Search) -> T:
        """Until a server says yes."""
        while True:
            try:
                return await ask(search)
            except PeerError as error:
                if not self._is_curable(error, search.busy):
                    raise
                await search.failed(error)

    async def _resume(self, search: Search) -> tuple[Open, Opened]:
        """As the server has the session, or anew with what is committed here."""
        before, home = self._place, self._home
        channel, server = await self._take_place(search)
        reopening = self.session.reopening(channel.number, channel.link.welcome)
        request = msgspec.structs.replace(reopening, is_placed=bool(server))
        resumption = None
        if home is not None and home.server == server:
            resumption = self.session.resumption(channel.number)
        if resumption is not None:
            try:
                return request, await self._ask(resumption)
            except LinkLost:
                raise
            except PeerError as error:
                if error.code not in ("digest_mismatch", "unknown_session"):
                    raise
        elif before is not None and before.channel.link is channel.link:
            await channel.send(Close(before.channel.number))
        return request, await self._ask(request)

    async def _take_place(self, search: Search) -> _Place:
        """A channel of the link that is up, or of the next one."""
        link = await search.link()
        if search.server and self._home is not None:
            _check_same(self._home.channel.link.welcome, link.welcome)
        self._in_place.close()
        channel = self._in_place.enter_context(link.channel())
        if self._place is not None:
            channel.uplink_bytes = self._place.channel.uplink_bytes
            channel.downlink_bytes = self._place.channel.downlink_bytes
        self._place = _Place(channel, search.server)
        return self._place

    async def _ask(self, message: Open | Resume) -> Opened:
        """In the place that was taken."""
        assert self._place is not None
        await self._place.channel.send(message)
        opened = await self._place.channel.receive(Opened)
        self._home, self._is_settled = self._place, False
        return opened


def _check_same(before: Welcome, now: Welcome) -> None:
    """Raise LinkLost for a server that cannot go on with a text as the other one would have."""
    if all(getattr(before, name) == getattr(now, name) for name in OF_TEXT):
        return
    message = f"the server has the target {now.target}, reproducible {now.reproducible}"
    was = f"{before.target}, reproducible {before.reproducible}"
    raise LinkLost(f"{message}, where the text began with {was}", code="target_changed")
