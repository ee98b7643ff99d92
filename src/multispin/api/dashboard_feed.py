"""What viewers of the dashboard are sent: once a second, made once for all of them, and only while
there are any. Who comes late or reads slowly gets everything, the others what has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING

import msgspec

from multispin.api.cell_state import Cell, cell_state
from multispin.api.dashboard_drafts import RecentPositions
from multispin.api.dashboard_events import (
    About,
    Everything,
    News,
    Past,
    Row,
    Texts,
    Waiting,
    row_of,
    sums_of,
)
from multispin.api.dashboard_passes import PassLog
from multispin.api.dashboard_plans import Comparison, compare
from multispin.api.dashboard_texts import TextLog
from multispin.api.errors import ApiError
from multispin.api.sse import EventStream
from multispin.core.planning import CellView
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
        self._positions: dict[int, RecentPositions] = {}
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
        sums, at_s = sums_of(cell), round(time.time(), 1)
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
                known = RecentPositions(stats)
            known.follow(KEEP)
            self._positions[number] = known
        return {
            device.device: row_of(device, self._positions[device.device]) for device in cell.devices
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
