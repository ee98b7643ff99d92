"""The paper's rounds on a simulated clock: planned by ``control``, NumPy over the devices.

plan      draft lengths and bandwidths, once or whenever a fading block has changed
draft     each device for itself
upload    each device through its fading channel; the round waits for the last one
verify    one pass over all drafts
commit    the accepted tokens and one more
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from multispin.cell import Cell
from multispin.control import Infeasible, Objective, Plan, Problem, solve
from multispin.control.problem import Floats, Lengths
from multispin.errors import BadInput
from multispin.radio.fading import FadingChannel, NeverSent
from multispin.sim.agreement import Agreements
from multispin.sim.streams import random_streams
from multispin.sim.trace import Progress, Trace

MAX_VERDICTS = 100_000_000  # 5 GB
NUM_REPORTS = 200  # of progress


def simulate_rounds(
    cell: Cell, policy: str, num_rounds: int, seed: int, on_progress: Progress | None = None
) -> Trace:
    """``num_rounds`` rounds from time 0 on.

    Raises BadInput for an unknown policy, an objective that it cannot meet, and a device whose
    draft would never arrive.
    """
    check_size(num_rounds, len(cell.names))
    streams = random_streams(seed)
    cell = cell.drawn(streams.placement)
    channel = FadingChannel(cell.radio, streams.fading)
    agreements = Agreements(
        cell.acceptance_models,
        cell.problem.acceptance,
        cell.answer_tokens,
        cell.problem.max_draft_length,
        streams.agreement,
    )
    planner = _Planner(cell, policy, channel)
    uploads = _Uploads(cell, channel)
    log = _Log(num_rounds, len(cell.names))
    report_every = -(-num_rounds // NUM_REPORTS)
    for i in range(num_rounds):
        grants = planner.grants(log.now_s)
        upload_s = uploads.seconds(grants, log.now_s)
        accepted = agreements.accepted(grants.plan.lengths)
        log.write(i, grants, upload_s, accepted)
        if on_progress is not None and (i + 1) % report_every == 0:
            on_progress(i + 1, num_rounds)
    return log.trace(cell.names)


def check_size(num_rounds: int, num_devices: int) -> None:
    most = MAX_VERDICTS // num_devices
    if not 1 <= num_rounds <= most:
        raise BadInput("--rounds", num_rounds, f"must lie between 1 and {most} for this cell")


@dataclass(frozen=True, eq=False)
class _Grants:
    """A plan, and what does not change while it is in force."""

    plan: Plan
    bits: Floats  # [K]
    num_rows: int
    pass_s: float
    round_trip_s: float

    @classmethod
    def of(cls, problem: Problem, plan: Plan) -> _Grants:
        num_drafted = int(plan.lengths.sum())
        return cls(
            plan,
            problem.draft_bits(plan.lengths),
            num_drafted + problem.num_devices,
            problem.base_round_s + problem.verify_per_token_s * num_drafted,
            problem.round_trip_s if num_drafted else 0.0,
        )


class _Planner:
    """Plans for the mean channel; with instantaneous CSI for the gains that there are."""

    def __init__(self, cell: Cell, policy: str, channel: FadingChannel) -> None:
        self._problem = cell.problem
        self._policy = policy
        self._channel = channel
        self._sees_gains = cell.csi == "instantaneous" and not cell.radio.is_constant
        self._gain: Floats | None = None
        # in any case, so that what the cell as a whole cannot have is refused at once
        self._grants = _Grants.of(cell.problem, solve(cell.problem, policy))

    def grants(self, now_s: float) -> _Grants:
        if self._sees_gains:
            gain = self._channel.gain(now_s)
            if self._gain is None or not np.array_equal(gain, self._gain):
                self._gain = gain
                self._grants = _Grants.of(self._problem, self._plan(gain))
        return self._grants

    def _plan(self, gain: Floats) -> Plan:
        """Who would be in outage at the bandwidth planned is left to the server, if that may be."""
        radio = self._channel.radio
        problem = replace(self._problem, uplink=radio.uplink(gain))
        is_out = np.zeros(problem.num_devices, np.bool_)
        while True:
            acceptance = np.where(is_out, 0.0, problem.acceptance)
            plan = self._solve(replace(problem, acceptance=acceptance))
            is_new = (plan.lengths > 0) & (radio.rate(gain, plan.bandwidths_hz) == 0) & ~is_out
            if not is_new.any():
                return plan
            is_out |= is_new

    def _solve(self, problem: Problem) -> Plan:
        """Fades that put the promised minimum out of reach are gone through without drafts."""
        try:
            return solve(problem, self._policy)
        except Infeasible:
            return solve(replace(problem, objective=Objective()), "server-only")


class _Uploads:
    """How long each device's upload takes."""

    def __init__(self, cell: Cell, channel: FadingChannel) -> None:
        self._names = cell.names
        self._channel = channel
        self._constant_s: Floats | None = None  # where nothing fades there is one plan only

    def seconds(self, grants: _Grants, now_s: float) -> Floats:
        if self._constant_s is not None:
            return self._constant_s
        plan = grants.plan
        start_s = now_s + plan.draft_s
        try:
            done_s = self._channel.transmit(start_s, grants.bits, plan.bandwidths_hz)
        except NeverSent as error:
            raise error.named(self._names[error.device]) from None
        seconds = done_s - start_s
        if self._channel.radio.is_constant:
            self._constant_s = seconds
        return seconds


class _Log:
    """The trace as it grows; ``now_s`` is the end of the last round written."""

    def __init__(self, num_rounds: int, num_devices: int) -> None:
        shape = (num_rounds, num_devices)
        self.now_s = 0.0
        self._num_draft = np.empty(shape, np.int32)
        self._num_accepted = np.empty(shape, np.int32)
        self._bandwidth_hz = np.empty(shape, np.float32)
        self._draft_s = np.empty(shape, np.float32)
        self._upload_s = np.empty(shape, np.float32)
        self._end_s = np.empty(num_rounds)
        self._pass_start_s = np.empty(num_rounds)
        self._pass_s = np.empty(num_rounds)
        self._pass_rows = np.empty(num_rounds, np.int32)

    def write(self, i: int, grants: _Grants, upload_s: Floats, accepted: Lengths) -> None:
        plan = grants.plan
        self._num_draft[i] = plan.lengths
        self._num_accepted[i] = accepted
        self._bandwidth_hz[i] = plan.bandwidths_hz
        self._draft_s[i] = plan.draft_s
        self._upload_s[i] = upload_s
        deadline_s = float((plan.draft_s + upload_s).max())
        start_s = self.now_s + deadline_s + grants.round_trip_s / 2
        self._pass_start_s[i] = start_s
        self._pass_s[i] = grants.pass_s
        self._pass_rows[i] = grants.num_rows
        self.now_s = self._end_s[i] = start_s + grants.pass_s + grants.round_trip_s / 2

    def trace(self, names: tuple[str, ...]) -> Trace:
        num_rounds, num_devices = self._num_draft.shape
        return Trace(
            names=names,
            simulated_s=self.now_s,
            device=np.tile(np.arange(num_devices, dtype=np.int32), num_rounds),
            round=np.repeat(np.arange(num_rounds, dtype=np.int32), num_devices),
            at_s=np.repeat(self._end_s, num_devices),
            num_draft=self._num_draft.ravel(),
            num_accepted=self._num_accepted.ravel(),
            num_committed=self._num_accepted.ravel() + np.int32(1),
            bandwidth_hz=self._bandwidth_hz.ravel(),
            draft_s=self._draft_s.ravel(),
            upload_s=self._upload_s.ravel(),
            pass_start_s=self._pass_start_s,
            pass_s=self._pass_s,
            pass_rows=self._pass_rows,
        )
