"""The last forward passes, and what became of their rows: kept while somebody watches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from multispin.net.observer import Observer
from multispin.wire.frames import FromServer, Verdict

MAX_PASSES = 160  # a small model makes thousands a second: the last are shown


# When it began, how long it took; rows, and of them: own, accepted, rejected.
PassFigures: TypeAlias = tuple[float, float, int, int, int, int]


@dataclass(slots=True)
class Pass:
    """``num_own`` rows gave a token after a draft or without one; what is neither that nor accepted
    nor rejected has read a prompt, or belonged to a session that has left."""

    began_s: float
    seconds: float
    num_rows: int
    num_own: int = 0
    num_accepted: int = 0
    num_rejected: int = 0

    @property
    def num_judged(self) -> int:
        return self.num_own + self.num_accepted + self.num_rejected

    def figures(self) -> PassFigures:
        times = round(self.began_s, 4), round(self.seconds, 5)
        return *times, self.num_rows, self.num_own, self.num_accepted, self.num_rejected


class PassLog(Observer):
    """The verdicts that are sent between the ends of two passes are those of the first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_on = False
        self._clock = clock
        self._passes: deque[Pass] = deque(maxlen=MAX_PASSES)
        self._num_ended = 0

    def pass_ended(self, num_rows: int, forward_s: float) -> None:
        if self.is_on:
            self._passes.append(Pass(self._clock() - forward_s, forward_s, num_rows))
            self._num_ended += 1

    def down(self, device: int, frame: FromServer) -> None:
        if not (self.is_on and self._passes and isinstance(frame, Verdict)):
            return
        last = self._passes[-1]
        if last.num_judged + frame.num_draft < last.num_rows:  # else it is one that is sent again
            last.num_own += 1
            last.num_accepted += frame.num_accepted
            last.num_rejected += frame.num_draft - frame.num_accepted

    def since(self, number: int) -> tuple[int, list[PassFigures]]:
        """How many have been judged so far, and those after ``number``, as far as they are kept.

        Of the newest one the verdicts are still to be sent.
        """
        num_judged = max(self._num_ended - 1, 0)
        end = max(len(self._passes) - 1, 0)
        begin = max(end - (num_judged - number), 0)
        return num_judged, [each.figures() for each in islice(self._passes, begin, end)]

    def stop(self) -> None:
        self.is_on = False
        self._passes.clear()
        self._num_ended = 0
