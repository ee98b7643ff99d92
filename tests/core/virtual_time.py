"""Server and devices on a virtual clock: the product's own core, with times that are given."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from multispin.core.batch import BatchLimits
from multispin.core.confidence import Calibration
from multispin.core.controller import ControlSettings
from multispin.core.device import DeviceSession
from multispin.core.drafter import Drafter
from multispin.core.engine import Engine
from multispin.core.server import Outgoing, ServerCore, ServerLimits
from multispin.types import Mode
from multispin.wire import frames
from multispin.wire.frames import TRANSPORT_BITS, Draft, Opened, Verdict
from tests.core.harness import new_engine, request, welcome


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
        prompts: Sequence[str] = ("The phone drafts and the server ",),
        temperature: float = 0.8,
        max_tokens: int = 1500,
    ) -> None:
        self.now = 0.0
        self.committed = [0] * len(hardware)
        self.grants: list[list[int]] = [[] for _ in hardware]
        self._hardware = hardware
        self._pass_s = pass_s
        self._prompts = prompts
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._engine = engine or new_engine(len(hardware), 2048)
        limits = ServerLimits(
            batch=BatchLimits(max_rows=33 * len(hardware), mode=mode),
            control=control or ControlSettings(),
        )
        self.core = ServerCore(self._engine.info, limits, lambda: self.now)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._busy = False
        self._drafting = [False] * len(hardware)
        self._uplink_free_at = [0.0] * len(hardware)
        self._calibrations = [Calibration() for _ in hardware]
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
        prompt = self._prompts[number % len(self._prompts)]
        message = request(
            number,
            prompt,
            rule="coupled" if self._temperature else "greedy",
            temperature=self._temperature,
            max_tokens=self._max_tokens,
            draft_length=length,
            seed=number,
        )
        ids = self._engine.tokenize(prompt, parse_special=False)
        [(_, opened)] = self.core.open(index, message, ids)
        assert isinstance(opened, Opened), opened
        self._sessions[index] = DeviceSession(
            message, opened, hardware.drafter, 0, welcome(self.core), self._calibrations[index]
        )
        self._act(index)

    def _act(self, index: int) -> None:
        """Begin the next token, unless one is being drafted; send what may be sent."""
        session, hardware = self._sessions[index], self._hardware[index]
        is_sending = self._uplink_free_at[index] > self.now
        if session.owes_message and (session.is_window or session.job() is None) and not is_sending:
            self._send(index, session.message())
        job = session.job()
        if job is None or self._drafting[index]:
            return
        self._drafting[index] = True
        drafted = session.draft(job)
        delay_s = 0.0 if drafted.is_lookup else hardware.draft_s_per_token

        def done() -> None:
            self._drafting[index] = False
            session.add(job, drafted, delay_s)
            self._act(index)

        self._at(delay_s, done)

    def _send(self, index: int, draft: Draft) -> None:
        session, hardware = self._sessions[index], self._hardware[index]
        bits = 8 * len(frames.encode(draft)) + TRANSPORT_BITS
        rate = min(session.upload_bits_per_s or 1e12, hardware.uplink_bits_per_s)
        self._uplink_free_at[index] = max(self._uplink_free_at[index], self.now) + bits / rate
        upload_s = self._uplink_free_at[index] - self.now
        self._at(upload_s, lambda: self._act(index))  # what was drafted meanwhile shares a frame
        delay = upload_s + hardware.round_trip_s / 2
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
        session.apply(verdict, self.now)
        if session.finish:
            self._open(index)
        else:
            self._act(index)
