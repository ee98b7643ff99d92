"""A device's line to its server: one link after another, as they are lost and found again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from multispin.errors import MultispinError, PeerError
from multispin.net.link import DeviceLink, LinkLost
from multispin.net.observer import Observer
from multispin.wire.frames import Find, Redirect, Welcome

FIRST_WAIT_S = 0.1
MOST_WAIT_S = 5.0  # half of those who wait for a server are back 0.29 of it after the server is
MOST_ASKED_S = 600.0
FIND_S = 10.0  # a directory that takes longer to answer is as good as none
# What time alone does not cure: whoever waits for a link is told. The line tries on.
REFUSALS = frozenset(
    {"forbidden", "target_changed", "unauthorized", "version_mismatch", "vocabulary_mismatch"}
)

Dial: TypeAlias = Callable[[], Awaitable[DeviceLink]]


class Change(NamedTuple):
    """The link is up again, or it is down: why."""

    is_up: bool
    reason: str = ""


class Backoff:
    """How long to wait before the next attempt: evenly at random between 0 and a bound that
    doubles each time ("full jitter"), so that those who lost the same server do not return as
    one."""

    def __init__(self, rng: random.Random, most_s: float = MOST_WAIT_S) -> None:
        self.rng = rng
        self.most_s = most_s
        self.bound_s = FIRST_WAIT_S

    def reset(self) -> None:
        self.bound_s = FIRST_WAIT_S

    def next_s(self, least_s: float = 0.0) -> float:
        """``least_s`` is what a server asked for."""
        wait_s = _bounded(least_s) + self.rng.uniform(0.0, self.bound_s)
        self.bound_s = min(2 * self.bound_s, self.most_s)
        return wait_s


class Line:
    """The link that is up; when it is lost, the next one, by the first of ``dials`` that answers.

    All servers must have the target of the first, or be directories. Without ``dials`` there is one
    link and no other. ``on_change`` is told when the link is lost and when there is a new one.
    """

    def __init__(
        self,
        link: DeviceLink,
        dials: Sequence[Dial] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.on_change: Callable[[Change], None] = lambda _: None
        self._link = link
        self._dials = dials
        self._at = 0  # the dial of the newest link
        self._free_at = [0.0] * len(dials)  # when each server wants to be asked again
        self._clock = clock
        self._backoff = Backoff(rng or random.Random())
        self._refusal: MultispinError | None = None
        self._changed = asyncio.Event()  # set for a moment
        self._keeper = asyncio.create_task(self._keep()) if dials else None
        if self._keeper is not None:
            self._keeper.add_done_callback(lambda _: self._tell_waiting())

    @property
    def welcome(self) -> Welcome:
        """Of the newest link."""
        return self._link.welcome

    @property
    def observers(self) -> Sequence[Observer]:
        return self._link.observers

    @property
    def is_up(self) -> bool:
        return self._link.is_up

    @property
    def trouble(self) -> str:
        """Why there is no link; empty while there is."""
        if self.is_up:
            return ""
        return str(self._refusal or self._link.loss)

    @property
    def returns(self) -> bool:
        """Whether there will be another link when this one is lost."""
        return self._keeper is not None and not self._keeper.done()

    def backoff(self) -> Backoff:
        """For whoever has to try something again and again on this line."""
        return Backoff(self._backoff.rng)

    async def link(self, *, waits: bool = True) -> DeviceLink:
        """The one that is up, or if it ``waits`` the next one.

        Raise PeerError where there is none to wait for, or the server refuses us.
        """
        while not self._link.is_up:
            if self._refusal is not None:
                raise _again(self._refusal)
            if not (waits and self.returns):
                raise self._link.loss
            await self._changed.wait()
        return self._link

    async def find(self, find: Find, *, waits: bool = True) -> Redirect:
        """As `router.Finder.find`, where the line leads to a directory."""
        while True:
            link = await self.link(waits=waits)
            try:
                return await _ask(link, find)
            except LinkLost:
                if not (waits and self.returns):
                    raise

    async def close(self) -> None:
        try:
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait([self._keeper])  # passes on a cancel of the caller
                if not self._keeper.cancelled():
                    self._keeper.result()
        finally:
            await self._link.close()

    # --- the next link -------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            began = self._clock()
            loss = await self._link.ended()
            # Where links are cut as soon as they are made, attempts go on to become rarer.
            if self._clock() - began > self._backoff.bound_s:
                self._backoff.reset()
            self.on_change(Change(False, str(loss)))
            self._link = await self._next(loss)
            self._refusal = None
            self._tell_waiting()
            self.on_change(Change(True))

    async def _next(self, why: MultispinError) -> DeviceLink:
        first = self._at  # which may have been cut off by accident
        while True:
            await asyncio.sleep(self._choose(first, why))
            try:
                return await self._dial()
            except MultispinError as error:
                why = error
            first = self._at + 1
            is_final = why.code in REFUSALS
            if is_final and self._refusal is None:
                self.on_change(Change(False, str(why)))
            self._refusal = why if is_final else None
            self._tell_waiting()

    def _choose(self, first: int, why: MultispinError) -> float:
        """Whom to ask next: who wants to be asked soonest, from the ``first`` on; in how long."""
        now, num = self._clock(), len(self._dials)
        self._free_at[self._at] = now + _bounded(why.retry_after_s)
        order = [at % num for at in range(first, first + num)]
        self._at = min(order, key=lambda at: max(self._free_at[at], now))
        return self._backoff.next_s(self._free_at[self._at] - now)

    async def _dial(self) -> DeviceLink:
        link = await self._dials[self._at]()
        before, now = self.welcome, link.welcome
        is_same = (now.fingerprint, now.target) == (before.fingerprint, before.target)
        if is_same or now.is_directory:
            return link
        await link.close()
        raise PeerError(
            f"the server now has the target {now.target} where it had {before.target}: start the "
            "device anew",
            code="target_changed",
        )

    def _tell_waiting(self) -> None:
        self._changed.set()
        self._changed.clear()


async def _ask(link: DeviceLink, find: Find) -> Redirect:
    with link.channel() as channel:
        await channel.send(msgspec.structs.replace(find, session=channel.number))
        try:
            async with asyncio.timeout(FIND_S):
                return await channel.receive(Redirect)
        except TimeoutError:
            message = f"the directory did not answer within {FIND_S:g} s"
            raise PeerError(message, code="overloaded") from None


def _bounded(asked_s: float) -> float:
    """A server may say anything."""
    return min(asked_s, MOST_ASKED_S) if asked_s > 0.0 else 0.0


def _again(error: MultispinError) -> PeerError:
    """The same for another task: an exception raised twice would grow a trace of both."""
    return PeerError(str(error), code=error.code, retry_after_s=error.retry_after_s)
