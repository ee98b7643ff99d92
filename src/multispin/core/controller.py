"""In charge: measure every device, plan for all of them, grant to each.

    observe (drafted, judged, passed) → plan (when it may pay) → grant (on the next verdict)

Every drafting session is a device of the control problem. Its grant follows the plan in force; a
plan is replaced only by one that is better by more than HYSTERESIS under the same estimates. A
session that the plan leaves without a draft is probed now and then with a short one, more and more
rarely as long as the probe is rejected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from multispin.control import Plan, Problem, bandwidth_for, solve
from multispin.control.estimate import (
    AcceptanceEstimate,
    AcceptancePrior,
    DeviceEstimate,
    VerificationCurve,
    VerificationFit,
)
from multispin.radio.channel import ConstantEfficiency
from multispin.wire.frames import TRANSPORT_BITS

Mode: TypeAlias = Literal["rounds", "stop-and-wait"]

ROUND_TRIP_LEVELS = 4  # so many limits to the round trip of those who draft are tried
REPLAN_S = 0.5  # a new plan at most so often
SOLVE_SHARE = 0.005  # of the server's time that planning may take
HYSTERESIS = 0.02
PROBE_LENGTH = 4
PROBE_SHARE = 0.01  # of the goodput that probing may cost
FIRST_PROBE = 16  # verdicts without a draft before the first probe; doubled by each rejected one
LAST_PROBE = 512
HEADER_BITS = 8 * 24 + TRANSPORT_BITS  # a draft's frame without its ids, and what carries it
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

    @property
    def budget(self) -> float | None:
        return self.uplink_bits_per_s or self.bandwidth_hz


class SessionKey(NamedTuple):
    link: Hashable
    session: int


class Grant(NamedTuple):
    draft_length: int
    upload_bits_per_s: int  # 0: as fast as it can


@dataclass
class _Link:
    """What outlives a session: the device's times, and how well its drafts did so far."""

    spectral_efficiency: float = 1.0  # bit/s per unit of the budget
    estimate: DeviceEstimate = field(default_factory=DeviceEstimate)
    prior: AcceptancePrior = field(default_factory=AcceptancePrior)


@dataclass
class _Device:
    """One session's device: what is known of it, and what it was told."""

    max_length: int
    link: _Link
    acceptance: AcceptanceEstimate
    planned: Grant | None = None
    idle_verdicts: int = sys.maxsize  # since the last draft; a new session is probed at once
    probe_after: int = FIRST_PROBE


class Controller:
    """Estimates and plan of one cell. ``clock`` in seconds; synchronous, no I/O."""

    def __init__(
        self,
        settings: ControlSettings,
        id_bits: int,
        max_draft_length: int,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self._id_bits = id_bits
        self._max_draft_length = max_draft_length
        self._clock = clock
        self._devices: dict[SessionKey, _Device] = {}
        self._links: dict[Hashable, _Link] = {}
        self._curve = VerificationCurve(CURVE_PRIOR)
        self._joined = False  # somebody came or went since the last plan
        self._planned_at = -np.inf
        self._solve_s = 0.0

    # --- observe -------------------------------------------------------------------------------

    def connect(self, link: Hashable, spectral_efficiency: float) -> None:
        """A device with a radio of so many bit/s/Hz; it counts where the budget is in hertz."""
        efficiency = 1.0 if self.settings.bandwidth_hz is None else spectral_efficiency
        self._links[link] = _Link(efficiency)

    def join(self, key: SessionKey, max_length: int) -> None:
        link = self._links.setdefault(key.link, _Link())
        self._devices[key] = _Device(max_length, link, AcceptanceEstimate(link.prior))
        self._joined = True

    def leave(self, key: SessionKey) -> None:
        device = self._devices.pop(key)
        if device.acceptance.num_tokens and key.link in self._links:
            self._links[key.link].prior = AcceptancePrior(device.acceptance.alpha)
        self._joined = True

    def drop(self, link: Hashable) -> None:
        self._links.pop(link, None)

    def drafted(
        self, key: SessionKey, num_tokens: int, drafting_s: float, turnaround_s: float
    ) -> None:
        """A draft came ``turnaround_s`` after the verdict before it had left."""
        device, now = self._devices[key], self._clock()
        device.link.estimate.observe_draft(num_tokens, drafting_s, now)
        rate = device.planned.upload_bits_per_s if device.planned else 0
        upload_s = self._bits(num_tokens) / rate if rate else 0.0
        device.link.estimate.observe_round_trip(max(turnaround_s - drafting_s - upload_s, 0.0), now)

    def judged(self, key: SessionKey, num_draft: int, num_accepted: int) -> None:
        device = self._devices[key]
        if num_draft == 0:
            device.idle_verdicts += 1
            return
        device.acceptance.observe(num_draft, num_accepted)
        if device.planned is not None and device.planned.draft_length == 0:  # it was a probe
            accepted = num_accepted == num_draft
            # A good probe is followed by another at once, until the plan believes it.
            device.probe_after = (
                0 if accepted else min(2 * device.probe_after + FIRST_PROBE, LAST_PROBE)
            )
        device.idle_verdicts = 0

    def passed(self, num_rows: int, num_sequences: int, seconds: float) -> None:
        self._curve.observe(num_rows, num_sequences, seconds)

    # --- grant ---------------------------------------------------------------------------------

    def grant(self, key: SessionKey) -> Grant:
        """What the device may do next."""
        device = self._devices[key]
        if self.settings.policy is None or device.max_length == 0:
            return Grant(device.max_length, 0)
        self._replan()
        if device.planned is None:  # the plan that knows of it is still to come
            return Grant(min(PROBE_LENGTH, device.max_length), self._rate(0.0, device))
        length = min(device.planned.draft_length, device.max_length)
        rate = device.planned.upload_bits_per_s
        if length == 0 and device.idle_verdicts >= self._probe_after(device):
            return Grant(min(PROBE_LENGTH, device.max_length), rate)
        return Grant(length, rate)

    def _probe_after(self, device: _Device) -> float:
        """Verdicts between two probes: few enough probes that all of them cost PROBE_SHARE."""
        if device.probe_after == 0:
            return 0
        num_devices = len(self._devices)
        estimate = device.link.estimate
        probe_s = PROBE_LENGTH * estimate.draft_s_per_token + estimate.round_trip_s
        pass_s = float(self._curve.fit.seconds(num_devices, num_devices))
        return max(device.probe_after, num_devices * probe_s / (PROBE_SHARE * pass_s))

    # --- plan ----------------------------------------------------------------------------------

    def _replan(self) -> None:
        now = self._clock()
        wait_s = max(0.0 if self._joined else REPLAN_S, self._solve_s / SOLVE_SHARE)
        if now - self._planned_at < wait_s:
            return
        devices = list(self._devices.values())
        plan = self._best(devices)
        if self._joined or plan.goodput_tokens_per_s > (1 + HYSTERESIS) * self._present(devices):
            self._adopt(devices, plan)
        self._joined = False
        self._planned_at = now
        self._solve_s = self._clock() - now

    def _best(self, devices: list[_Device]) -> Plan:
        """A round waits for the longest round trip among those that draft: try who may."""
        trips = _round_trips(devices)
        levels = np.unique(
            np.quantile(trips, np.linspace(0, 1, ROUND_TRIP_LEVELS), method="higher")
        )
        plans = [
            solve(self._problem(devices, trips <= level, float(level)), self.settings.policy or "")
            for level in levels
        ]
        return max(plans, key=lambda plan: plan.goodput_tokens_per_s)

    def _present(self, devices: list[_Device]) -> float:
        """What the plan in force would give under the present estimates."""
        lengths = np.array([d.planned.draft_length if d.planned else 0 for d in devices])
        longest = float(_round_trips(devices)[lengths > 0].max(initial=0.0))
        problem = self._problem(devices, np.ones(len(devices), np.bool_), longest)
        return bandwidth_for(problem, lengths).goodput_tokens_per_s

    def _adopt(self, devices: list[_Device], plan: Plan) -> None:
        for device, length, share in zip(
            devices, plan.lengths.tolist(), plan.bandwidths_hz.tolist(), strict=True
        ):
            device.planned = Grant(int(length), self._rate(share, device))

    def _rate(self, share: float, device: _Device) -> int:
        """Bits per second of a share of the budget; who has none probes at an equal one."""
        if self.settings.budget is None:
            return 0
        share = share or self.settings.budget / len(self._devices)
        return max(1, int(share * device.link.spectral_efficiency))

    def _problem(
        self, devices: list[_Device], may_draft: npt.NDArray[np.bool_], round_trip_s: float
    ) -> Problem:
        fit = self._curve.fit
        drafting = np.array([d.link.estimate.draft_s_per_token for d in devices])
        acceptance = np.array([d.acceptance.alpha for d in devices])
        # Who has no drafter is a device that never gets anything accepted.
        acceptance[[d.max_length == 0 for d in devices]] = 0.0
        acceptance[~may_draft] = 0.0
        one = np.ones(len(devices))
        return Problem(
            draft_s_per_token=drafting,
            acceptance=acceptance,
            bits_per_token=one * self._id_bits,
            bits_per_draft=one * HEADER_BITS,
            uplink=ConstantEfficiency(np.array([d.link.spectral_efficiency for d in devices])),
            bandwidth_hz=self.settings.budget or AMPLE_BITS_PER_S,
            verify_fixed_s=fit.fixed_s,
            verify_per_device_s=fit.per_device_s,
            verify_per_token_s=fit.per_token_s,
            round_trip_s=round_trip_s,
            max_draft_length=self._max_draft_length,
        )

    def _bits(self, num_tokens: int) -> int:
        return HEADER_BITS + num_tokens * self._id_bits


def _round_trips(devices: list[_Device]) -> npt.NDArray[np.float64]:
    return np.array([d.link.estimate.round_trip_s for d in devices])
