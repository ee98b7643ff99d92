"""Counts and times of one end of the links, for `/metrics` and `/api/cell`."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.core.controller import ControlSettings
from multispin.core.speculation import SpeculationStats
from multispin.net.observer import Observer
from multispin.wire.frames import (
    Close,
    Error,
    FromDevice,
    FromServer,
    Hello,
    Open,
    Opened,
    Redirect,
    Resume,
    Verdict,
)

RECENT_S = 5.0  # what happened so long ago counts 1/e of what happens now
UNKNOWN = 1 << 30  # tokens that remain of a text that was begun on another link
FOLLOW_S = 0.5  # the recent figures are brought up to date so often
NO_DRAFTER = "none"
MAX_CODES = 64  # that are counted
MAX_NAME = 64  # characters of a drafter's name that are kept: devices choose it
# Upper bounds of the histograms' buckets.
LATENCY_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
ROWS = tuple(float(2**power) for power in range(13))


class Histogram:
    """How many observations lie at or below each bound and above the one before, and how many
    above all; and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Recent:
    """By how much counters grew of late: what came ``t`` seconds ago counts exp(-t / RECENT_S)."""

    def __init__(self, num_counters: int) -> None:
        self.grown = [0.0] * num_counters
        self._totals = [0.0] * num_counters
        self._at = 0.0

    def follow(self, now: float, *totals: float) -> None:
        """The counters stand there now."""
        fade = math.exp((self._at - now) / RECENT_S)
        self.grown = [
            old * fade + total - seen
            for old, total, seen in zip(self.grown, totals, self._totals, strict=True)
        ]
        self._totals, self._at = list(totals), now


class RecentDrafts:
    """Goodput and acceptance of late."""

    def __init__(self) -> None:
        self._grown = Recent(3)

    def follow(self, now: float, *counters: SpeculationStats) -> None:
        """The counters, added up, stand there now."""
        self._grown.follow(
            now,
            sum(stats.num_committed_tokens for stats in counters),
            sum(stats.num_draft_tokens for stats in counters),
            sum(stats.num_accepted_tokens for stats in counters),
        )

    @property
    def goodput_tokens_per_s(self) -> float:
        return self._grown.grown[0] / RECENT_S

    @property
    def acceptance(self) -> float | None:
        """Accepted tokens per drafted one; None where hardly any was drafted."""
        _, drafted, accepted = self._grown.grown
        return accepted / drafted if drafted > 0.5 else None


@dataclass(slots=True)
class _Text:
    """A session that goes on."""

    opened_at: float
    num_remaining: int  # tokens
    length: int = 0  # committed so far, the prompt included
    committed_at: float | None = None


@dataclass
class DeviceState:
    """A link: what its device drafts with, what it was granted last, what became of its drafts."""

    drafter: str
    spectral_efficiency: float
    cell: str = ""  # the radio cell
    draft_length: int = 0
    upload_bits_per_s: int = 0  # 0: no limit
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    recent: RecentDrafts = field(default_factory=RecentDrafts)
    texts: dict[int, _Text] = field(default_factory=dict)

    @property
    def num_sessions(self) -> int:
        return len(self.texts)

    def take_grant(self, frame: Opened | Verdict) -> None:
        """Towards its end a text needs less than its device was granted: that tells nothing."""
        text = self.texts.get(frame.session)
        is_cut = text is not None and frame.draft_length >= text.num_remaining - 1
        if not is_cut or frame.draft_length > self.draft_length:
            self.draft_length = frame.draft_length
        self.upload_bits_per_s = frame.upload_bits_per_s

    @property
    def drafts(self) -> bool:
        """Whether it is a device at all: each request to the server's own endpoint has a link."""
        return self.drafter != NO_DRAFTER


class RecentPasses(NamedTuple):
    """Means of a pass, and the share of time that the passes took."""

    num_rows: float
    seconds: float
    busy: float


class Telemetry(Observer):
    """Everything since the start; the same at either end of a link, but passes, which are the
    server's alone. ``control`` is how the server shares out the uplink."""

    def __init__(
        self,
        control: ControlSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.devices: dict[int, DeviceState] = {}
        self.time_to_first_token = Histogram(LATENCY_S)
        self.inter_token_latency = Histogram(LATENCY_S)
        self.verify_seconds = Histogram(LATENCY_S)
        self.verify_rows = Histogram(ROWS)
        self.refusals: dict[str, int] = {}  # by code
        self._control = control or ControlSettings()
        self._budgets: Mapping[str, float] = {}  # by radio cell, that were said since the start
        self._clock = clock
        self._gone = SpeculationStats()  # of devices that left
        self._recent = RecentDrafts()
        self._passes = Recent(3)  # passes, rows, seconds
        self._followed_at = -math.inf

    # --- what is told --------------------------------------------------------------------------

    @property
    def num_sessions(self) -> int:
        return sum(device.num_sessions for device in self.devices.values())

    def totals(self) -> SpeculationStats:
        """Counters since the start, of those that left too."""
        totals = SpeculationStats()
        for stats in self._counters():
            totals.add(stats)
        return totals

    def recent_drafts(self) -> RecentDrafts:
        """Of all devices; those of each are up to date then, too."""
        self._follow(self._clock())
        return self._recent

    def share(self, state: DeviceState) -> float | None:
        """Of its cell's uplink, as granted last; None where nobody shares it out."""
        budget = self._budgets.get(state.cell, self._control.budget)
        if self._control.policy is None or budget is None:
            return None
        if state.draft_length == 0 or budget == 0:
            return 0.0
        in_hertz = self._control.bandwidth_hz is not None
        efficiency = state.spectral_efficiency if in_hertz else 1.0
        return state.upload_bits_per_s / efficiency / budget

    def recent_passes(self) -> RecentPasses:
        self._follow(self._clock())
        num_passes, num_rows, seconds = self._passes.grown
        per_pass = 1 / num_passes if num_passes > 0.5 else 0.0
        return RecentPasses(num_rows * per_pass, seconds * per_pass, seconds / RECENT_S)

    def _counters(self) -> list[SpeculationStats]:
        return [self._gone, *(device.stats for device in self.devices.values())]

    def _follow(self, now: float) -> None:
        self._followed_at = now
        self._recent.follow(now, *self._counters())
        for device in self.devices.values():
            device.recent.follow(now, device.stats)
        self._passes.follow(
            now, sum(self.verify_rows.counts), self.verify_rows.sum, self.verify_seconds.sum
        )

    # --- what happens --------------------------------------------------------------------------

    def joined(self, device: int, hello: Hello) -> None:
        name, efficiency = hello.drafter[:MAX_NAME], hello.spectral_efficiency
        self.devices[device] = DeviceState(name, efficiency, hello.cell)

    def left(self, device: int) -> None:
        if (state := self.devices.pop(device, None)) is not None:
            self._gone.add(state.stats)

    def up(self, device: int, frame: FromDevice) -> None:
        if (state := self.devices.get(device)) is None:
            return
        match frame:
            case Open(session=session, max_tokens=max_tokens, committed=b""):
                state.texts.setdefault(session, _Text(self._clock(), max_tokens))
            case Open(session=session) | Resume(session=session):
                text = state.texts.setdefault(session, _Text(self._clock(), UNKNOWN))
                text.committed_at = text.opened_at  # its first token came long ago
            case Close(session=session):
                state.texts.pop(session, None)

    def down(self, device: int, frame: FromServer) -> None:
        if isinstance(frame, Error):
            self.refused(frame.code)
        if (state := self.devices.get(device)) is None:
            return
        match frame:
            case Verdict():
                self._judged(state, frame)
            case Opened():
                state.take_grant(frame)
            case Error(session=int(session)) | Redirect(session=session):
                state.texts.pop(session, None)

    def shared_out(self, budgets: Mapping[str, float]) -> None:
        self._budgets = budgets

    def refused(self, code: str) -> None:
        """A frame, a request or a connection was. Codes of the other side's may be any words."""
        if code in self.refusals or len(self.refusals) < MAX_CODES:
            self.refusals[code] = self.refusals.get(code, 0) + 1

    def _judged(self, state: DeviceState, verdict: Verdict) -> None:
        now = self._clock()
        if now - self._followed_at > FOLLOW_S:
            self._follow(now)
        if (text := state.texts.get(verdict.session)) is not None:
            if verdict.start < text.length:
                return  # sent again
            self._time(text, verdict, now)
        state.stats.count(verdict)
        if verdict.finish:
            state.texts.pop(verdict.session, None)
        else:
            state.take_grant(verdict)

    def _time(self, text: _Text, verdict: Verdict, now: float) -> None:
        """Tokens that are committed together count as one: they can be shown at once."""
        if verdict.num_committed == 0:
            return
        if text.committed_at is None:
            self.time_to_first_token.observe(now - text.opened_at)
        else:
            self.inter_token_latency.observe(now - text.committed_at)
        text.committed_at = now
        text.num_remaining -= verdict.num_committed
        text.length = verdict.start + verdict.num_committed

    def pass_ended(self, num_rows: int, forward_s: float) -> None:
        self.verify_seconds.observe(forward_s)
        self.verify_rows.observe(num_rows)
