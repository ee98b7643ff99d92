"""Virtual clocks."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable


class Events:
    """What is to happen, in order of time; at one instant in the order in which it was set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def next_s(self) -> float:
        """When something happens next; infinite if nothing will."""
        return self._heap[0][0] if self._heap else math.inf

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), action))

    def advance(self) -> None:
        """All that happens at the next instant, and what follows from it at once."""
        self.now = self.next_s
        while self._heap and self._heap[0][0] <= self.now:
            heapq.heappop(self._heap)[2]()


class Stopwatch:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
