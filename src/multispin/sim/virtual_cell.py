"""Server and devices on a virtual clock: the second shell around core/, beside net/.

What is decided is decided in core/. The shell knows how long things take: a pass as long as the
engine says, a token as long as its device drafts, an upload as long as the device's radio needs,
and every frame half a round trip. All else takes no time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from multispin.core.engine import Batch, EngineInfo, StepResult
from multispin.core.limits import ServerLimits
from multispin.core.server import Outgoing, ServerCore
from multispin.sim.events import Events
from multispin.sim.seat import Seat, Told, VirtualDevice
from multispin.wire.frames import Opened, Verdict

LEAST_SLEEP_S = 1e-6  # of a server that waits for a moment: its clock has to move


class Steps(Protocol):
    """An engine whose steps say what they take: ``forward_s``."""

    info: EngineInfo

    def step(self, batch: Batch) -> StepResult: ...


class Watcher(Protocol):
    """Who keeps what a cell does."""

    def passed(self, start_s: float, seconds: float, num_rows: int) -> None: ...

    def told(self, told: Told) -> None: ...


class VirtualCell:
    """Devices that write one text after another, and their server."""

    def __init__(
        self, engine: Steps, limits: ServerLimits, devices: Sequence[VirtualDevice], watch: Watcher
    ) -> None:
        self.events = Events()
        self.core = ServerCore(engine.info, limits, lambda: self.events.now)
        self.num_passes = 0  # begun
        self._most_passes = math.inf
        self._num_verdicts = 0  # on their way
        self._engine = engine
        self._watch = watch
        self._is_busy = False
        self._has_news = False  # for the server
        self._wakes_at = math.inf
        self.seats = [
            Seat(index, device, self.events, self.core, self._deliver, self._told)
            for index, device in enumerate(devices)
        ]

    def run(self, end_s: float = math.inf, num_passes: float = math.inf) -> None:
        """Until that time, or until the verdicts of so many passes in all have been told."""
        events, self._most_passes = self.events, num_passes
        while events.next_s <= end_s:
            if self.num_passes >= num_passes and not (self._is_busy or self._num_verdicts):
                return
            assert math.isfinite(events.next_s), "nothing will ever happen"
            events.advance()
            if self._has_news and not self._is_busy:
                self._begin_pass()
        events.now = end_s

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        """The server took something in; these are its answers."""
        self._has_news = True
        for index, frame in outgoing:
            assert isinstance(index, int) and isinstance(frame, Opened | Verdict), frame
            self._num_verdicts += isinstance(frame, Verdict)
            self.seats[index].answer(frame, self.num_passes - 1)

    def _told(self, told: Told) -> None:
        self._num_verdicts -= 1
        self._watch.told(told)

    def _begin_pass(self) -> None:
        if self.num_passes >= self._most_passes:
            return
        self._has_news = False
        batch = self.core.next_batch()
        self.core.learn()
        if batch is None:
            self._sleep()
            return
        start_s = self.events.now
        result = self._engine.step(batch)
        self._is_busy = True
        self.num_passes += 1

        def done() -> None:
            self._is_busy = False
            self._watch.passed(start_s, result.forward_s, batch.num_rows)
            self._deliver(self.core.complete(result))
            self._begin_pass()

        self.events.after(result.forward_s, done)

    def _sleep(self) -> None:
        """Until a frame comes, or it is time to go on without."""
        wait_s, now = self.core.wait_s(), self.events.now
        if wait_s is None or now + wait_s >= self._wakes_at:
            return
        wait_s = max(wait_s, LEAST_SLEEP_S)
        self._wakes_at = now + wait_s
        self.events.after(wait_s, self._wake)

    def _wake(self) -> None:
        self._wakes_at = math.inf
        self._has_news = True
