"""What viewers of the dashboard are sent: once a second, made once for all of them, and only while
there are any. Who comes late or reads slowly gets everything, the others what has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from multispin.api.cell_state import Cell, CellDevice, cell_state
from multispin.api.dashboard_passes import PassLog
from multispin.api.dashboard_plans import Comparison, compare
from multispin.api.dashboard_texts import TextLog, TextNews
from multispin.api.errors import ApiError
from multispin.api.sse import EventStream
from multispin.core.planning import CellView
from multispin.core.speculation import SpeculationStats
from multispin.net.observer import Observer
from multispin.net.server_link import Link
from multispin.types import Mode

if TYPE_CHECKING:
    from multispin.api.app import ServerState
    from multispin.core.server import ServerCore
    from multispin.net.server import EdgeServer

log = logging.getLogger("multispin.dashboard")

TICK_S = 1.0
HISTORY = 300  # ticks
MAX_VIEWERS = 32
COMPARE_S = 3.0  # between two comparisons of policies, at least
COMPARE_SHARE = 0.004  # of a core's time that they may take
KEEP = 0.95  # a tick, of what was counted of acceptance by position
NOTHING = Comparison([], [])
LEAST_DRAFTS = 0.5  # as they count now, for a position to be shown


class Row(msgspec.Struct, array_like=True, frozen=True):
    """A device. Its shares are rounded, so that what stands still is not sent again."""

    device: int
    drafter: str
    num_sessions: int
    draft_length: int  # granted
    judged_length: float | None  # mean of the drafts of late, as far as they were judged
    bandwidth_share: float | None
    goodput_tokens_per_s: float
    num_committed_tokens: int
    acceptance: float | None
    positions: list[int]  # percent accepted, of late
    draft_s_per_token: float | None
    round_trip_s: float | None
    uplink_bytes: int
    downlink_bytes: int


Past: TypeAlias = tuple[float, float, int, float, float]  # at_s, goodput, sessions, rows, seconds


class Sums(msgspec.Struct, frozen=True):
    goodput_tokens_per_s: float
    acceptance: float | None
    num_sessions: int
    num_alone: int  # of them, without a drafter
    rows_mean: float
    seconds_mean: float
    busy_share: float
    num_committed_tokens: int
    num_errors: int


class Texts(msgspec.Struct, frozen=True):
    kept: list[int]  # numbers of those that are still shown
    news: list[TextNews]


class News(msgspec.Struct, omit_defaults=True, tag_field="kind", tag="news"):
    """Since the event before. ``passes`` are the last of those ``num_passes`` has counted."""

    at_s: float  # since 1970
    sums: Sums
    devices: list[Row]
    left: list[int]
    num_passes: int
    passes: list[tuple[float, float, int, int, int, int]]  # as in Pass
    comparison: Comparison | None = None
    texts: Texts | None = None


class About(msgspec.Struct, frozen=True):
    """What does not change while the server runs."""

    target: str
    mode: str
    policy: str | None
    shows_texts: bool
    row: tuple[str, ...] = Row.__struct_fields__


class Everything(News, omit_defaults=True, tag="all"):
    """The same, since the beginning."""

    about: About | None = None
    history: list[Past] = []


class Waiting(msgspec.Struct, tag_field="kind", tag="loading"):
    """There is no server yet."""


class Logs:
    """What is noted for the dashboard alone, as an observer of the server."""

    def __init__(self, *, shows_texts: bool = False) -> None:
        self.passes = PassLog()
        self.texts = TextLog() if shows_texts else None

    @property
    def observers(self) -> list[Observer]:
        return [self.passes, *([self.texts] if self.texts else [])]

    def attach(self, core: ServerCore) -> None:
        """Texts are noted from now on, if at all."""
        if (texts := self.texts) is not None:
            core.tell_commit = lambda key, verdict, ids: texts.committed(
                _number(key.link), verdict, ids, core.vocabulary
            )


class Positions:
    """What became of a device's drafts of late, by position."""

    def __init__(self, stats: SpeculationStats) -> None:
        self.stats = stats
        self._seen: tuple[list[int], list[int]] = ([], [])
        self._drafted: list[float] = []
        self._accepted: list[float] = []

    def follow(self, keep: float) -> None:
        """``keep`` of what was counted before is left."""
        drafted, accepted = self.stats.drafted_at.copy(), self.stats.accepted_at.copy()
        self._drafted = _faded(self._drafted, keep, drafted, self._seen[0])
        self._accepted = _faded(self._accepted, keep, accepted, self._seen[1])
        self._seen = drafted, accepted

    @property
    def mean_length(self) -> float | None:
        """Of a draft; None where there was hardly any."""
        if not self._drafted or self._drafted[0] < LEAST_DRAFTS:
            return None
        return sum(self._drafted) / self._drafted[0]

    @property
    def percent(self) -> list[int]:
        """Of the drafts that reached a position, those that were accepted up to there."""
        shares: list[int] = []
        for num_drafted, num_accepted in zip(self._drafted, self._accepted, strict=True):
            if num_drafted < LEAST_DRAFTS:
                break
            shares.append(round(100 * num_accepted / num_drafted))
        return shares


def _faded(grown: list[float], keep: float, totals: list[int], seen: list[int]) -> list[float]:
    num_more = len(totals) - len(grown)
    pairs = zip(grown + [0.0] * num_more, totals, seen + [0] * num_more, strict=True)
    return [old * keep + total - before for old, total, before in pairs]


class Feed:
    """One for all viewers."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._num_viewers = 0
        self._ticking: asyncio.Task[None] | None = None
        self._ticked = asyncio.Event()  # set, and replaced, by the next tick
        self._history: deque[Past] = deque(maxlen=HISTORY)
        self._forget()

    def _forget(self) -> None:
        self._number = 0  # of the last tick
        self._has_server = False
        self._wants_all = True
        self._news = self._everything = b""
        self._rows: dict[int, Row] = {}
        self._positions: dict[int, Positions] = {}
        self._num_passes = 0
        self._comparison = NOTHING
        self._is_new = False  # nobody has been sent the comparison
        self._comparing: asyncio.Task[None] | None = None
        self._compare_at = 0.0

    # --- viewers -------------------------------------------------------------------------------

    async def send_to(self, stream: EventStream) -> None:
        """Until the server is stopped; whoever goes away cancels this."""
        if self._num_viewers >= MAX_VIEWERS:
            raise ApiError(503, f"{MAX_VIEWERS} viewers are watching already", code="overloaded")
        self._num_viewers += 1
        try:
            await stream.start()
            if self._ticking is None:
                self._state.logs.passes.is_on = True
                self._ticking = asyncio.create_task(self._tick_on())
            await self._send(stream)
            await stream.end()
        finally:
            self._num_viewers -= 1
            if self._num_viewers == 0:
                self._rest()

    async def _send(self, stream: EventStream) -> None:
        number = -1  # of the tick that was sent last
        self._wants_all = True
        while True:
            await self._ticked.wait()
            if self._is_over:
                return
            if number == self._number - 1:
                data = self._news
            elif not (data := self._everything):
                self._wants_all = True
                continue
            number = self._number
            await stream.send(data)

    @property
    def _is_over(self) -> bool:
        """The server is being stopped, or the ticks have failed."""
        server = self._state.server
        is_draining = server is not None and server.core.draining
        return is_draining or self._ticking is None or self._ticking.done()

    def _rest(self) -> None:
        """Nobody watches: nothing is done, and only the history is kept."""
        for task in (self._ticking, self._comparing):
            if task is not None:
                task.cancel()
        self._ticking = None
        self._forget()
        self._state.logs.passes.stop()

    # --- ticks ---------------------------------------------------------------------------------

    async def _tick_on(self) -> None:
        try:
            while True:
                self._tick()
                self._wake()
                await asyncio.sleep(TICK_S)
        except Exception:
            log.exception("a tick failed")
            asyncio.get_running_loop().call_soon(self._wake)  # once this task is done

    def _wake(self) -> None:
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()

    def _tick(self) -> None:
        self._number += 1
        server = self._state.server
        if server is None:
            self._news = self._everything = msgspec.json.encode(Waiting())
            return
        news = self._look(server)
        self._news, self._everything = msgspec.json.encode(news), b""
        if self._wants_all or not self._has_server:
            self._everything = msgspec.json.encode(self._all(server, news))
            self._wants_all = False
        if not self._has_server:  # what is new is everything
            self._news, self._has_server = self._everything, True
        if self._comparing is None and time.monotonic() >= self._compare_at:
            self._comparing = asyncio.create_task(self._compare(server))

    def _look(self, server: EdgeServer) -> News:
        state = self._state
        cell = cell_state(server, state.telemetry)
        before, self._rows = self._rows, self._follow(cell)
        sums, at_s = _sums(cell), round(time.time(), 1)
        past = (sums.goodput_tokens_per_s, sums.num_sessions, sums.rows_mean, sums.seconds_mean)
        self._history.append((at_s, *past))
        self._num_passes, passes = state.logs.passes.since(self._num_passes)
        news = News(
            at_s=at_s,
            sums=sums,
            devices=[row for number, row in self._rows.items() if row != before.get(number)],
            left=[number for number in before if number not in self._rows],
            num_passes=self._num_passes,
            passes=passes,
            comparison=self._comparison if self._is_new else None,
        )
        if (texts := state.logs.texts) is not None:
            news.texts = Texts(texts.kept, texts.news())
        self._is_new = False
        return news

    def _follow(self, cell: Cell) -> dict[int, Row]:
        devices = self._state.telemetry.devices
        positions, self._positions = self._positions, {}
        for number in (device.device for device in cell.devices):
            stats, known = devices[number].stats, positions.get(number)
            if known is None or known.stats is not stats:  # another has its number
                known = Positions(stats)
            known.follow(KEEP)
            self._positions[number] = known
        return {
            device.device: _row(device, self._positions[device.device]) for device in cell.devices
        }

    def _all(self, server: EdgeServer, news: News) -> Everything:
        limits, logs = server.core.limits, self._state.logs
        about = About(
            target=server.core.info.target,
            mode=limits.batch.mode,
            policy=limits.control.policy,
            shows_texts=logs.texts is not None,
        )
        return Everything(
            at_s=news.at_s,
            sums=news.sums,
            devices=list(self._rows.values()),
            left=[],
            num_passes=self._num_passes,
            passes=logs.passes.since(0)[1],
            comparison=self._comparison,
            texts=Texts(logs.texts.kept, logs.texts.whole()) if logs.texts else None,
            about=about,
            history=list(self._history),
        )

    # --- policies ------------------------------------------------------------------------------

    async def _compare(self, server: EdgeServer) -> None:
        """In a thread: batches go on meanwhile."""
        spent_s = 0.0
        try:
            keys, view = server.core.controller.beliefs()
            found = NOTHING
            if view.acceptance.any():  # somebody has a drafter
                numbers = [_number(key.link) for key in keys]
                mode = server.core.limits.batch.mode
                found, spent_s = await asyncio.to_thread(_timed, view, mode, numbers)
            self._is_new = found != self._comparison
            self._comparison = found
        except Exception:
            log.exception("policies could not be compared")
            spent_s = 1.0
        self._compare_at = time.monotonic() + max(COMPARE_S, spent_s / COMPARE_SHARE)
        self._comparing = None


def _timed(view: CellView, mode: Mode, devices: list[int]) -> tuple[Comparison, float]:
    began_s = time.thread_time()
    return compare(view, mode, devices), time.thread_time() - began_s


def _number(link: Hashable) -> int:
    assert isinstance(link, Link)
    return link.number


def _sums(cell: Cell) -> Sums:
    return Sums(
        goodput_tokens_per_s=round(cell.goodput_tokens_per_s, 2),
        acceptance=_rounded(cell.acceptance, 3),
        num_sessions=cell.num_sessions,
        num_alone=cell.without_drafter.num_sessions,
        rows_mean=round(cell.passes.rows_mean, 1),
        seconds_mean=round(cell.passes.seconds_mean, 5),
        busy_share=round(cell.passes.busy_share, 3),
        num_committed_tokens=int(cell.counters["num_committed_tokens"]),
        num_errors=int(cell.counters["num_errors"]),
    )


def _row(device: CellDevice, positions: Positions) -> Row:
    return Row(
        device=device.device,
        drafter=device.drafter,
        num_sessions=device.num_sessions,
        draft_length=device.draft_length,
        judged_length=_rounded(positions.mean_length, 1),
        bandwidth_share=_rounded(device.bandwidth_share, 3),
        goodput_tokens_per_s=round(device.goodput_tokens_per_s, 1),
        num_committed_tokens=device.num_committed_tokens,
        acceptance=_rounded(device.acceptance, 2),
        positions=positions.percent,
        draft_s_per_token=_rounded(device.draft_s_per_token, 4),
        round_trip_s=_rounded(device.round_trip_s, 4),
        uplink_bytes=device.uplink_bytes,
        downlink_bytes=device.downlink_bytes,
    )


def _rounded(value: float | None, num_digits: int) -> float | None:
    return None if value is None else round(value, num_digits)
