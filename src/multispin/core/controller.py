"""In charge of one radio cell: measure every device, plan for all of them, grant to each.

    observe (drafted, judged) → plan (when it may pay) → grant (on the next verdict)

Every drafting session is a device of the control problem. Its grant follows the plan in force; a
plan is replaced only by one that is better by more than HYSTERESIS under the same estimates, or
where it does harm, or by one for another budget. What is planned, by mode, is in planning.py. A
session that the plan leaves without a draft is probed now and then with a short one, more and more
rarely as long as the probe is rejected. A device's next text goes on with the grant of its last
one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from multispin.control.estimate import (
    AcceptanceEstimate,
    AcceptancePrior,
    DeviceEstimate,
    survivals,
)
from multispin.control.policies import PolicyFailed
from multispin.control.stop_and_wait import DO_NO_HARM
from multispin.control.uplink import SPAN
from multispin.core.planning import Allotment, CellView, Others, allotments, present_goodput
from multispin.core.server_time import CURVE_PRIOR, SAVED_S, ServerTime
from multispin.types import Mode
from multispin.wire.payload import Payload

REPLAN_S = 0.5  # a new plan at most so often
SEAT_S = 1.0  # for which a text that ended is planned for: the next one mostly follows
SLICE_S = 0.002  # of planning at a time: verdicts are waiting
HYSTERESIS = 0.02
KNOWN_AFTER = 200  # compared tokens, what drafts of a device are worth
PRICE_S = 5.0  # between two looks at what the uplink is worth
NEGLIGIBLE = 0.002  # of the goodput: whom the price's span brings no more, lacks nothing
PROBE_LENGTH = 4  # and as many more as were accepted in the probes just before
PROBE_SHARE = 0.01  # of the goodput that probing may cost
FIRST_PROBE = 16  # verdicts without a draft before the first probe; doubled by each rejected one
LAST_PROBE = 512
PROBE_RUN = 60  # tokens in a row that good probes, each following the last at once, may hold
AMPLE_BITS_PER_S = 1e9  # what the uplink is taken for when nobody states it
LEAST_BUDGET = 1.0  # what none at all is taken for


@dataclass(frozen=True)
class ControlSettings:
    """Who decides how far devices draft. Without a policy, each device drafts as far as it asks.

    The uplink that all devices of a radio cell share is stated as a rate, or as a bandwidth, of
    which each device makes its spectral efficiency; without either it is not scarce and nobody's
    rate is limited.
    """

    policy: str | None = None
    uplink_bits_per_s: float | None = None
    bandwidth_hz: float | None = None
    least_share: float = DO_NO_HARM  # of server-only generation, that each device is planned for

    @property
    def budget(self) -> float | None:
        return self.uplink_bits_per_s or self.bandwidth_hz


class SessionKey(NamedTuple):
    link: Hashable
    session: int


class Grant(NamedTuple):
    draft_length: int
    upload_bits_per_s: int  # 0: as fast as it can


NOTHING = Grant(0, 0)


@dataclass
class _Link:
    """What outlives a session: the device's times, and how well its drafts did so far."""

    payload: Payload
    spectral_efficiency: float = 1.0  # bit/s per unit of the budget
    estimate: DeviceEstimate = field(default_factory=DeviceEstimate)
    prior: AcceptancePrior = field(default_factory=AcceptancePrior)
    num_compared: int = 0  # drafted tokens of which it is known what they were worth


@dataclass(eq=False)
class _Device:
    """One session's device: what is known of it, and what it was told."""

    max_length: int
    link: _Link
    acceptance: AcceptanceEstimate
    wish: Grant = NOTHING  # what it would do if nobody planned
    planned: Grant | None = None
    idle_verdicts: int = sys.maxsize  # since the last draft; a new session is probed at once
    probe_after: int = FIRST_PROBE
    num_good: int = 0  # tokens of probes accepted in a row
    gain: float = np.inf  # by the plan, over server-only generation: unknown, it may be anything

    @property
    def hoped_gain(self) -> float:
        """Infinite where drafts may soon turn out to be worth more than they are planned for."""
        if self.max_length == 0 or self.planned is None:
            return self.gain
        is_probed = self.planned.draft_length == 0
        is_open = self.num_good > 0 if is_probed else self.link.num_compared < KNOWN_AFTER
        return np.inf if is_open else self.gain

    @property
    def probe_length(self) -> int:
        return min(PROBE_LENGTH + self.num_good, self.max_length)


class Controller:
    """Estimates and plan of one cell, which has ``name`` and, where its uplink is scarce, a
    ``budget``. ``clock`` in seconds; synchronous, no I/O."""

    def __init__(
        self,
        settings: ControlSettings,
        payload: Payload,
        max_draft_length: int,
        clock: Callable[[], float],
        mode: Mode,
        server: ServerTime,
        others: Callable[[], Others],
        name: str = "",
    ) -> None:
        self.name = name
        self.budget = settings.budget
        self.price = 0.0  # goodput that one more unit of the budget would bring, as of late
        self.failure: str | None = None  # why there was no new plan when one was due
        self._settings = settings
        self._mode = mode
        self._payload = payload
        self._max_draft_length = max_draft_length
        self._clock = clock
        self._server = server
        self._others = others  # of the server's cells
        self._devices: dict[SessionKey, _Device] = {}
        self._links: dict[Hashable, _Link] = {}
        self._fit = CURVE_PRIOR  # as of the last plan
        self._left: dict[Hashable, tuple[_Device, float]] = {}  # by link, and since when
        self._num_planned = 0  # devices in the last plan
        self._planned_at = -np.inf
        self._is_priced = False
        self._priced_at = -np.inf
        self._planning: Iterator[None] | None = None

    # --- observe -------------------------------------------------------------------------------

    def connect(
        self, link: Hashable, spectral_efficiency: float, payload: Payload | None = None
    ) -> None:
        """A device with a radio of so many bit/s/Hz, which count where the budget is in hertz.

        ``payload`` where its drafts are not what the others' are.
        """
        efficiency = 1.0 if self._settings.bandwidth_hz is None else spectral_efficiency
        self._links[link] = _Link(payload or self._payload, efficiency)

    def join(self, key: SessionKey, max_length: int) -> None:
        """A session; the next text of a device goes on with what the last one was granted."""
        link = self._links.setdefault(key.link, _Link(self._payload))
        acceptance = AcceptanceEstimate(link.prior)
        device, since = self._left.pop(key.link, (None, 0.0))
        if device is None or self._clock() - since > SEAT_S:
            device = _Device(max_length, link, acceptance)
        device.max_length, device.acceptance = max_length, acceptance
        device.wish = Grant(max_length, 0)
        self._devices[key] = device

    def leave(self, key: SessionKey) -> None:
        device = self._devices.pop(key)
        if device.acceptance.num_tokens:
            device.link.prior = AcceptancePrior(device.acceptance.alpha)
        if key.link in self._links:
            self._left[key.link] = device, self._clock()

    def drop(self, link: Hashable) -> None:
        self._links.pop(link, None)
        self._left.pop(link, None)

    def drafted(
        self, key: SessionKey, num_tokens: int, drafting_s: float, turnaround_s: float | None
    ) -> None:
        """A draft came ``turnaround_s`` after the verdict that it answers, if it answers one."""
        device, now = self._devices[key], self._clock()
        device.link.estimate.observe_draft(num_tokens, drafting_s, now)
        if turnaround_s is None:
            return
        rate = device.planned.upload_bits_per_s if device.planned else 0
        upload_s = _bits(device, num_tokens) / rate if rate else 0.0
        device.link.estimate.observe_round_trip(max(turnaround_s - drafting_s - upload_s, 0.0), now)

    def answered(self, key: SessionKey) -> None:
        """A verdict was given, on a draft or without one."""
        self._devices[key].idle_verdicts += 1

    def compared(self, key: SessionKey, num_tokens: int, num_same: int) -> None:
        """The text has reached drafted tokens: the first ``num_same`` of them are what it says.

        In mode window that is also known of those that came too late to be judged.
        """
        device = self._devices[key]
        device.acceptance.observe(num_tokens, num_same)
        device.link.num_compared += num_tokens
        device.idle_verdicts = 0
        if device.planned is not None and device.planned.draft_length > 0:
            device.num_good = 0
            return
        # It was a probe. A good one is followed by a longer one at once, until the plan should have
        # believed it: that it still does not draft is then no doubt about the device.
        device.num_good = device.num_good + num_same if num_same == num_tokens else 0
        if 0 < device.num_good < PROBE_RUN:
            device.probe_after = 0
        else:
            device.probe_after = min(2 * device.probe_after + FIRST_PROBE, LAST_PROBE)

    # --- tell ----------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether nobody is connected, nor any session left."""
        return not (self._links or self._devices)

    @property
    def num_devices(self) -> int:
        """With a drafter and a session."""
        return len({key.link for key, device in self._devices.items() if device.max_length})

    @property
    def beside_others(self) -> Others:
        """Its sessions, to who plans for another cell."""
        devices = self._devices.values()
        num_drafting = sum(device.max_length > 0 for device in devices)
        return Others(np.array([device.hoped_gain for device in devices]), num_drafting)

    def estimate(self, link: Hashable) -> DeviceEstimate | None:
        """Of a device that is connected."""
        known = self._links.get(link)
        return None if known is None else known.estimate

    def beliefs(self) -> tuple[list[SessionKey], CellView]:
        """Which sessions there are, and what a plan would be made of; behind them in the view
        are those of other cells."""
        devices = list(self._devices.values())
        return list(self._devices), self._view(devices)

    # --- grant ---------------------------------------------------------------------------------

    def grant(self, key: SessionKey) -> Grant:
        """What the device may do next."""
        device = self._devices[key]
        if self._settings.policy is None or device.max_length == 0:
            return device.wish
        if self.budget == 0:
            return Grant(0, 1)
        if device.planned is None:  # the plan that knows of it is still to come
            return Grant(device.probe_length, self._rate(0.0, device))
        length = min(device.planned.draft_length, device.max_length)
        rate = device.planned.upload_bits_per_s
        if length == 0 and self._is_probe_due(device):
            return Grant(device.probe_length, rate)
        return Grant(length, rate)

    def _is_probe_due(self, device: _Device) -> bool:
        """Few enough probes that all of them cost PROBE_SHARE; none is held back by a good one."""
        if device.idle_verdicts < device.probe_after or device.probe_after == 0:
            return device.probe_after == 0
        num_devices = len(self._devices)
        estimate = device.link.estimate
        probe_s = device.probe_length * estimate.draft_s_per_token + estimate.round_trip_s
        if self.budget is not None:
            probe_s += _bits(device, device.probe_length) / self._rate(0.0, device)
        pass_s = float(self._fit.seconds(num_devices, num_devices))
        return device.idle_verdicts >= num_devices * probe_s / (PROBE_SHARE * pass_s)

    def set_budget(self, budget: float) -> None:
        """The next plan is made for it and adopted, and until then nobody is granted a rate that
        would go beyond it. Where it was not scarce before, everybody has an equal share."""
        self._is_priced = True
        if budget == self.budget:
            return
        before, self.budget = self.budget, budget
        self._planning, self._num_planned = None, -1
        devices = self._all_devices()
        for device in devices:
            if device.planned is None:
                continue
            if before:
                rate = device.planned.upload_bits_per_s * min(budget / before, 1.0)
            else:
                rate = budget / len(devices) * device.link.spectral_efficiency
            device.planned = Grant(device.planned.draft_length, max(1, int(rate)))

    # --- plan ----------------------------------------------------------------------------------

    @property
    def is_planning(self) -> bool:
        return self._planning is not None

    def plan(self) -> bool:
        """Go on planning, for a slice of time, if a plan is due or in the making; whether one
        was."""
        now, server = self._clock(), self._server
        server.save(now)
        if self._planning is None:
            self._planning = self._next(now)
            if self._planning is None:
                return False
        try:
            for _ in self._planning:
                if self._clock() - now > SLICE_S:
                    break
            else:
                self._planning = None
        except PolicyFailed as error:  # the grants in force stand
            self._planning = None
            self.failure = str(error)
        server.spend(self._clock() - now)
        return True

    def _next(self, now: float) -> Iterator[None] | None:
        """What is due, if anything."""
        if self._is_plan_due(now):
            self._planned_at = now
            return self._plan()
        is_due = self._is_priced and now - self._priced_at >= PRICE_S
        if is_due and self._devices and self._server.saved_s > 0.5 * SAVED_S:
            self._priced_at = now
            return self._find_price()
        return None

    def _is_plan_due(self, now: float) -> bool:
        has_changed = self._has_changed()
        if not (self._devices or self._left):
            return False
        if has_changed:
            return self._server.saved_s > 0
        return now - self._planned_at >= REPLAN_S and self._server.saved_s > 0.5 * SAVED_S

    def _has_changed(self) -> bool:
        """Whether somebody came or went since the last plan, or it was for another budget."""
        for link, (_, since) in list(self._left.items()):
            if self._clock() - since > SEAT_S:
                del self._left[link]
        return self._num_planned != len(self._devices) + len(self._left)

    def _plan(self) -> Iterator[None]:
        """Look at the cell, and adopt what is better; the caller may pause it at each yield."""
        is_new, policy = self._has_changed(), self._settings.policy
        assert policy is not None
        devices = self._all_devices()
        self._num_planned = len(devices)
        self._fit = self._server.fit
        view = self._view(devices)
        yield
        for found in allotments(view, self._mode, policy):
            plan = found
            yield
        self.failure = None
        present = 0.0 if is_new else present_goodput(view, self._mode, policy)
        if is_new or plan.goodput_tokens_per_s > (1 + HYSTERESIS) * present:
            self._adopt(devices, plan, view.problem.base_round_s)

    def _adopt(self, devices: list[_Device], plan: Allotment, alone_s: float) -> None:
        """``alone_s``: of a pass without a draft. Behind the devices are those of other cells."""
        found = plan.lengths.tolist(), plan.shares.tolist(), plan.rates.tolist()
        for device, length, share, rate in zip(devices, *found, strict=False):
            device.planned = Grant(length, self._rate(share, device))
            device.gain = max(alone_s * rate, 1.0)

    def _find_price(self) -> Iterator[None]:
        """What plans for more and for less of the uplink differ by."""
        policy, budget = self._settings.policy, self.budget
        assert policy is not None
        assert budget is not None
        devices = self._all_devices()
        view = self._view(devices)
        goodputs = []
        for factor in (1 / SPAN, SPAN):
            changed = replace(view, budget=factor * view.budget)
            for found in allotments(changed, self._mode, policy):
                plan = found
                yield
            goodputs.append(plan.goodput_tokens_per_s)
        less, more = goodputs
        is_scarce = more - less > NEGLIGIBLE * less
        self.price = (more - less) / ((SPAN - 1 / SPAN) * view.budget) if is_scarce else 0.0

    def _rate(self, share: float, device: _Device) -> int:
        """Bits per second of a share of the budget; who has none probes at an equal one."""
        if self.budget is None:
            return 0
        share = share or self.budget / max(len(self._devices), 1)
        return max(1, int(share * device.link.spectral_efficiency))

    def _all_devices(self) -> list[_Device]:
        """And those whose next text is expected."""
        return [*self._devices.values(), *(device for device, _ in self._left.values())]

    def _view(self, devices: list[_Device]) -> CellView:
        estimates = [device.link.estimate for device in devices]
        payloads = [device.link.payload for device in devices]
        # Who has no drafter is a device that never gets anything accepted.
        drafts = np.array([device.max_length > 0 for device in devices])
        survival = survivals([d.acceptance for d in devices], self._max_draft_length)
        view = CellView(
            draft_s_per_token=np.array([e.draft_s_per_token for e in estimates]),
            acceptance=np.array([d.acceptance.alpha for d in devices]) * drafts,
            survival=survival * drafts[:, None],
            round_trip_s=np.array([e.round_trip_s for e in estimates]),
            spectral_efficiency=np.array([d.link.spectral_efficiency for d in devices]),
            lengths=np.array([self._length(device) for device in devices], np.int64),
            bits_per_token=np.array([p.bits_per_token for p in payloads]),
            bits_per_draft=np.array([p.bits_per_draft for p in payloads]),
            budget=AMPLE_BITS_PER_S if self.budget is None else max(self.budget, LEAST_BUDGET),
            fit=self._server.fit,
            least_share=self._settings.least_share,
        )
        others = self._others()
        if len(others.gains) == 0:
            return view
        if self._settings.policy != "heterogeneous":  # which has no regard for anybody
            return view.among(others)
        return view.beside(others, int(drafts.sum()))

    def _length(self, device: _Device) -> int:
        """Of drafts, in force."""
        if self._settings.policy is None:
            return device.wish.draft_length
        return device.planned.draft_length if device.planned else 0


def _bits(device: _Device, num_tokens: int) -> float:
    """Of a draft."""
    payload = device.link.payload
    return payload.bits_per_draft + num_tokens * payload.bits_per_token
