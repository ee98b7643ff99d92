"""In charge: measure every device, plan for all of them, grant to each.

    observe (drafted, judged, passed) → plan (when it may pay) → grant (on the next verdict)

Every drafting session is a device of the control problem. Its grant follows the plan in force; a
plan is replaced only by one that is better by more than HYSTERESIS under the same estimates, or
where it does harm. What is planned, by mode, is in planning.py. A session that the plan leaves
without a draft is probed now and then with a short one, more and more rarely as long as the probe
is rejected. A device's next text goes on with the grant of its last one.
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
    VerificationCurve,
    VerificationFit,
    survivals,
)
from multispin.control.policies import PolicyFailed
from multispin.control.problem import Floats
from multispin.control.stop_and_wait import DO_NO_HARM
from multispin.core.planning import Allotment, CellView, allotments, present_goodput
from multispin.types import Mode
from multispin.wire.payload import Payload

REPLAN_S = 0.5  # a new plan at most so often
SOLVE_SHARE = 0.005  # of the server's time that planning may take
SEAT_S = 1.0  # for which a text that ended is planned for: the next one mostly follows
SAVED_S = 0.3  # of planning at most, for when somebody comes or goes; half is for nothing else
SLICE_S = 0.002  # of planning at a time: verdicts are waiting
HYSTERESIS = 0.02
RETABLE = 4  # passes between two looks at how long they take
PROBE_LENGTH = 4  # and as many more as were accepted in the probes just before
PROBE_SHARE = 0.01  # of the goodput that probing may cost
FIRST_PROBE = 16  # verdicts without a draft before the first probe; doubled by each rejected one
LAST_PROBE = 512
PROBE_RUN = 60  # tokens in a row that good probes, each following the last at once, may hold
# Optimistic about further rows: a plan that believes in them tries them, and learns what they cost.
CURVE_PRIOR = VerificationFit(fixed_s=0.03, per_token_s=0.0005)
AMPLE_BITS_PER_S = 1e9  # what the uplink is taken for when nobody states it


@dataclass(frozen=True)
class ControlSettings:
    """Who decides how far devices draft. Without a policy, each device drafts as far as it asks.

    The uplink that all devices share is stated as a rate, or as a bandwidth, of which each device
    makes its spectral efficiency; without either it is not scarce and nobody's rate is limited.
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

    @property
    def probe_length(self) -> int:
        return min(PROBE_LENGTH + self.num_good, self.max_length)


class Controller:
    """Estimates and plan of one cell. ``clock`` in seconds; synchronous, no I/O."""

    def __init__(
        self,
        settings: ControlSettings,
        payload: Payload,
        max_draft_length: int,
        clock: Callable[[], float],
        mode: Mode,
    ) -> None:
        self.settings = settings
        self._mode = mode
        self._payload = payload
        self._max_draft_length = max_draft_length
        self._clock = clock
        self._devices: dict[SessionKey, _Device] = {}
        self._links: dict[Hashable, _Link] = {}
        self._curve = VerificationCurve(CURVE_PRIOR)
        self._fit = CURVE_PRIOR  # as of the last plan
        self.failure: str | None = None  # why there was no new plan when one was due
        self._num_passes = 0
        self._pass_s: Floats | None = None
        self._left: dict[Hashable, tuple[_Device, float]] = {}  # by link, and since when
        self._num_planned = 0  # devices in the last plan
        self._planned_at = -np.inf
        self._saved_s = SAVED_S  # of planning, as of _saved_at
        self._saved_at = clock()
        self._planning: Iterator[None] | None = None

    # --- observe -------------------------------------------------------------------------------

    def connect(
        self, link: Hashable, spectral_efficiency: float, payload: Payload | None = None
    ) -> None:
        """A device with a radio of so many bit/s/Hz, which count where the budget is in hertz.

        ``payload`` where its drafts are not what the others' are.
        """
        efficiency = 1.0 if self.settings.bandwidth_hz is None else spectral_efficiency
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

    def passed(self, num_rows: int, num_sequences: int, seconds: float) -> None:
        self._num_passes += 1
        if self._num_passes % RETABLE == 0:
            self._pass_s = None
        self._curve.observe(num_rows, num_sequences, seconds)

    def pass_seconds(self, max_rows: int) -> Floats:
        """Expected time of a pass with 1, 2, … ``max_rows`` rows [max_rows]."""
        if self._pass_s is None:
            self._pass_s = self._curve.seconds(np.arange(1, max_rows + 1))
        return self._pass_s

    # --- tell ----------------------------------------------------------------------------------

    def estimate(self, link: Hashable) -> DeviceEstimate | None:
        """Of a device that is connected."""
        known = self._links.get(link)
        return None if known is None else known.estimate

    def beliefs(self) -> tuple[list[SessionKey], CellView]:
        """Which sessions there are, and what a plan would be made of."""
        devices = list(self._devices.values())
        view = self._view(devices)
        if self.settings.policy is None:
            view = replace(view, lengths=np.array([d.wish.draft_length for d in devices], np.int64))
        return list(self._devices), view

    # --- grant ---------------------------------------------------------------------------------

    def grant(self, key: SessionKey) -> Grant:
        """What the device may do next."""
        device = self._devices[key]
        if self.settings.policy is None or device.max_length == 0:
            return device.wish
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
        if self.settings.budget is not None:
            probe_s += _bits(device, device.probe_length) / self._rate(0.0, device)
        pass_s = float(self._fit.seconds(num_devices, num_devices))
        return device.idle_verdicts >= num_devices * probe_s / (PROBE_SHARE * pass_s)

    # --- plan ----------------------------------------------------------------------------------

    def plan(self) -> None:
        """Go on planning, for a slice of time, if a plan is due or in the making."""
        if self.settings.policy is None:
            return
        now = self._clock()
        self._saved_s = min(self._saved_s + SOLVE_SHARE * (now - self._saved_at), SAVED_S)
        self._saved_at = now
        if self._planning is None:
            if not self._is_plan_due(now):
                return
            self._planned_at = now
            self._planning = self._plan()
        try:
            for _ in self._planning:
                if self._clock() - now > SLICE_S:
                    break
            else:
                self._planning = None
        except PolicyFailed as error:  # the grants in force stand
            self._planning = None
            self.failure = str(error)
        self._saved_s -= self._clock() - now

    def _is_plan_due(self, now: float) -> bool:
        has_changed = self._has_changed()
        if not (self._devices or self._left):
            return False
        if has_changed:
            return self._saved_s > 0
        return now - self._planned_at >= REPLAN_S and self._saved_s > 0.5 * SAVED_S

    def _has_changed(self) -> bool:
        """Whether somebody came or went since the last plan."""
        for link, (_, since) in list(self._left.items()):
            if self._clock() - since > SEAT_S:
                del self._left[link]
        return self._num_planned != len(self._devices) + len(self._left)

    def _plan(self) -> Iterator[None]:
        """Look at the cell, and adopt what is better; the caller may pause it at each yield."""
        is_new, policy = self._has_changed(), self.settings.policy
        assert policy is not None
        devices = [*self._devices.values(), *(device for device, _ in self._left.values())]
        self._num_planned = len(devices)
        self._fit = self._curve.fit
        view = self._view(devices)
        yield
        for found in allotments(view, self._mode, policy):
            plan = found
            yield
        self.failure = None
        present = 0.0 if is_new else present_goodput(view, self._mode, policy)
        if is_new or plan.goodput_tokens_per_s > (1 + HYSTERESIS) * present:
            self._adopt(devices, plan)

    def _adopt(self, devices: list[_Device], plan: Allotment) -> None:
        for device, length, share in zip(
            devices, plan.lengths.tolist(), plan.shares.tolist(), strict=True
        ):
            device.planned = Grant(length, self._rate(share, device))

    def _rate(self, share: float, device: _Device) -> int:
        """Bits per second of a share of the budget; who has none probes at an equal one."""
        if self.settings.budget is None:
            return 0
        share = share or self.settings.budget / len(self._devices)
        return max(1, int(share * device.link.spectral_efficiency))

    def _view(self, devices: list[_Device]) -> CellView:
        estimates = [device.link.estimate for device in devices]
        payloads = [device.link.payload for device in devices]
        # Who has no drafter is a device that never gets anything accepted.
        drafts = np.array([device.max_length > 0 for device in devices])
        survival = survivals([d.acceptance for d in devices], self._max_draft_length)
        return CellView(
            draft_s_per_token=np.array([e.draft_s_per_token for e in estimates]),
            acceptance=np.array([d.acceptance.alpha for d in devices]) * drafts,
            survival=survival * drafts[:, None],
            round_trip_s=np.array([e.round_trip_s for e in estimates]),
            spectral_efficiency=np.array([d.link.spectral_efficiency for d in devices]),
            lengths=np.array([d.planned.draft_length if d.planned else 0 for d in devices]),
            bits_per_token=np.array([p.bits_per_token for p in payloads]),
            bits_per_draft=np.array([p.bits_per_draft for p in payloads]),
            budget=self.settings.budget or AMPLE_BITS_PER_S,
            fit=self._curve.fit,
            least_share=self.settings.least_share,
        )


def _bits(device: _Device, num_tokens: int) -> float:
    """Of a draft."""
    payload = device.link.payload
    return payload.bits_per_draft + num_tokens * payload.bits_per_token
