"""Server and devices on a virtual clock: the product's own core, with times that are given."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from multispin.core.batch import BatchLimits
from multispin.core.controller import HEADER_BITS, ControlSettings, Mode
from multispin.core.device import DeviceSession
from multispin.core.drafter import Drafter
from multispin.core.engine import Engine
from multispin.core.server import Outgoing, ServerCore, ServerLimits
from multispin.wire.frames import Opened, Verdict
from tests.core.harness import new_engine, request


@dataclass
class Hardware:
    """A device and its link, as they truly are."""

    drafter: Drafter | None
    draft_s_per_token: float = 0.0
    draft_length: int = 32  # what it asks for
    round_trip_s: float = 0.01
    uplink_bits_per_s: float = 1e9  # of its own radio, whatever it is granted


class Cell:
    """Runs devices that write for ever (their texts begin anew) and counts committed tokens."""

    def __init__(
        self,
        hardware: list[Hardware],
        pass_s: Callable[[int], float],
        *,
        mode: Mode = "rounds",
        control: ControlSettings | None = None,
        engine: Engine | None = None,
        prompt: str = "The phone drafts and the server ",
        temperature: float = 0.8,
    ) -> None:
        self.now = 0.0
        self.committed = [0] * len(hardware)
        self.grants: list[list[int]] = [[] for _ in hardware]
        self._hardware = hardware
        self._pass_s = pass_s
        self._prompt = prompt
        self._temperature = temperature
        self._engine = engine or new_engine(len(hardware), 2048)
        limits = ServerLimits(
            batch=BatchLimits(max_rows=33 * len(hardware), mode=mode),
            control=control or ControlSettings(),
        )
        self.core = ServerCore(self._engine.info, limits, lambda: self.now)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._busy = False
        self._sessions: dict[int, DeviceSession] = {}
        self._numbers = itertools.count()
        for index in range(len(hardware)):
            self._open(index)

    def run(self, seconds: float) -> float:
        """Let virtual time pass; committed tokens per second of it."""
        before, end = sum(self.committed), self.now + seconds
        self._poke()
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
            self._poke()
        self.now = end
        return (sum(self.committed) - before) / seconds

    def _at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), action))

    def _open(self, index: int) -> None:
        hardware, number = self._hardware[index], next(self._numbers)
        length = 0
        if hardware.drafter:
            hardware.drafter.free(0)
            length = hardware.draft_length
        message = request(
            number,
            self._prompt,
            temperature=self._temperature,
            max_tokens=1500,
            draft_length=length,
            seed=number,
        )
        prompt = self._engine.tokenize(self._prompt, parse_special=False)
        [(_, opened)] = self.core.open(index, message, prompt)
        assert isinstance(opened, Opened), opened
        size = self.core.vocabulary.size
        self._sessions[index] = DeviceSession(
            message, opened, hardware.drafter, 0, size, self._engine.info.context_length
        )
        self._act(index)

    def _act(self, index: int) -> None:
        session, hardware = self._sessions[index], self._hardware[index]
        if not session.owes_draft:
            return
        draft, num_tokens = session.make_draft()
        drafting_s = num_tokens * hardware.draft_s_per_token
        draft = msgspec.structs.replace(draft, drafting_us=round(1e6 * drafting_s))
        bits = HEADER_BITS + 9 * num_tokens
        rate = min(session.upload_bits_per_s or 1e12, hardware.uplink_bits_per_s)
        delay = drafting_s + bits / rate + hardware.round_trip_s / 2
        self._at(delay, lambda: self._deliver(self.core.draft(index, draft)))

    def _poke(self) -> None:
        if self._busy:
            return
        batch = self.core.next_batch()
        if batch is None:
            return
        self._busy = True
        result = self._engine.step(batch)
        seconds = self._pass_s(batch.num_rows)
        result = msgspec.structs.replace(result, forward_s=seconds)

        def done() -> None:
            self._busy = False
            self._deliver(self.core.complete(result))

        self._at(seconds, done)

    def _deliver(self, outgoing: list[Outgoing]) -> None:
        for index, frame in outgoing:
            assert isinstance(frame, Verdict), frame
            self.committed[index] += frame.num_committed
            self.grants[index].append(frame.draft_length)
            self._at(
                self._hardware[index].round_trip_s / 2,
                lambda index=index, verdict=frame: self._take(index, verdict),
            )

    def _take(self, index: int, verdict: Verdict) -> None:
        session = self._sessions[index]
        session.apply(verdict)
        if session.finish:
            self._open(index)
        else:
            self._act(index)
