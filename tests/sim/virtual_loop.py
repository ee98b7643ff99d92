"""asyncio on a virtual clock: when nothing is ready, time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping


class Deadlock(RuntimeError):
    """Nothing is ready, and no timer is set."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs on timers alone: no sockets, no threads."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(Jump(self))

    def time(self) -> float:
        return self.now


class Jump(selectors.BaseSelector):
    """Waits for nobody; the loop's own wake-up pipe is the only one registered."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def register(self, fileobj: object, events: int, data: object = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)  # type: ignore[arg-type]

    def unregister(self, fileobj: object) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)  # type: ignore[arg-type]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock
        self._loop.now += max(timeout, 0.0)
        return []

    def get_map(self) -> Mapping[object, selectors.SelectorKey]:  # type: ignore[override]
        return {}
