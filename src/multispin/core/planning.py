"""What the controller plans with: the cell as it is believed to be, and the objective of its mode.

    rounds          control.solve: all in one round, one batch
    stop-and-wait   control.stop_and_wait: each device's own cycle
    window          control.window: how far ahead pays, at what rate

In each of them no device goes below a share of server-only generation. The policies that are there
for comparison are planned as in rounds in every mode: their draft length is what it is there, or
the window that long, and they may harm a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from multispin.control import (
    Infeasible,
    Objective,
    Problem,
    VerificationFit,
    bandwidth_for,
    evaluate_stop_and_wait,
    solve,
    stop_and_wait_plans,
)
from multispin.control.problem import Floats, Lengths
from multispin.control.window import evaluate_window, window_plans
from multispin.radio.channel import ConstantEfficiency
from multispin.types import Mode

ROUND_TRIP_LEVELS = 4  # so many limits to the round trip of those who draft are tried


class Allotment(NamedTuple):
    """A plan of any mode."""

    lengths: Lengths  # [K] draft lengths or windows
    shares: Floats  # [K] of the budget
    goodput_tokens_per_s: float
    rates: Floats  # [K] tokens per second


class Others(NamedTuple):
    """What the sessions of a server's other cells are to a plan."""

    gains: Floats  # [N] tokens per second by its plan, over those of the server alone; 1 or more
    num_drafting: int  # of them, that have a drafter


@dataclass(frozen=True, eq=False)
class CellView:
    """The devices of a cell and what is believed of them; all arrays [K] but ``survival``."""

    draft_s_per_token: Floats
    acceptance: Floats  # 0 for who has no drafter
    survival: Floats  # [K, L], of a draft's positions
    round_trip_s: Floats
    spectral_efficiency: Floats  # bit/s per unit of the budget
    lengths: Lengths  # in force
    bits_per_token: Floats
    bits_per_draft: Floats
    budget: float
    fit: VerificationFit
    least_share: float | Floats  # of server-only generation, that each device keeps

    @cached_property
    def problem(self) -> Problem:
        return Problem(
            draft_s_per_token=self.draft_s_per_token,
            acceptance=self.acceptance,
            bits_per_token=self.bits_per_token,
            bits_per_draft=self.bits_per_draft,
            uplink=ConstantEfficiency(self.spectral_efficiency),
            bandwidth_hz=self.budget,
            verify_fixed_s=self.fit.fixed_s,
            verify_per_device_s=self.fit.per_device_s,
            verify_per_token_s=self.fit.per_token_s,
            max_draft_length=self.survival.shape[1],
        )

    def among(self, others: Others) -> CellView:
        """With a row for each session of other cells in every pass."""
        each_s = self.fit.per_device_s + self.fit.per_token_s
        fixed_s = self.fit.fixed_s + len(others.gains) * each_s
        return replace(self, fit=replace(self.fit, fixed_s=fixed_s))

    def beside(self, others: Others, num_drafting: int) -> CellView:
        """With the sessions of other cells behind its own ``num_drafting`` and other devices: as
        devices that never get anything accepted, and else are like these.

        None of them may lose more than it gains elsewhere, as far as a share g of what it gains:
        passes of all cells together then get longer by no more than what is to be borne, because
        each cell takes its part p of it, by its devices: (least share/g)^p.
        """
        num = len(self.acceptance) + len(others.gains)
        part = num_drafting / max(num_drafting + others.num_drafting, 1)
        gains = np.append(np.ones(len(self.acceptance)), others.gains)
        more = (0, len(others.gains))
        return replace(
            self,
            draft_s_per_token=np.resize(self.draft_s_per_token, num),
            acceptance=np.pad(self.acceptance, more),
            survival=np.pad(self.survival, (more, (0, 0))),
            round_trip_s=np.resize(self.round_trip_s, num),
            spectral_efficiency=np.resize(self.spectral_efficiency, num),
            lengths=np.pad(self.lengths, more),
            bits_per_token=np.resize(self.bits_per_token, num),
            bits_per_draft=np.resize(self.bits_per_draft, num),
            least_share=(self.least_share / gains) ** part,
        )


def allotments(view: CellView, mode: Mode, policy: str) -> Iterator[Allotment]:
    """The best plan so far, again and again: a server may do something else in between."""
    if policy != "heterogeneous" or mode == "rounds":
        yield from _rounds(view, policy)
    elif mode == "stop-and-wait":
        for plan in stop_and_wait_plans(
            view.problem, view.round_trip_s, least_share=view.least_share, near=view.lengths
        ):
            yield Allotment(
                plan.lengths,
                plan.bandwidths_hz,
                plan.goodput_tokens_per_s,
                plan.device_tokens_per_s,
            )
    else:
        for best in window_plans(
            view.problem, view.survival, view.round_trip_s, least_share=view.least_share
        ):
            yield Allotment(
                best.lengths,
                best.bandwidths_hz,
                best.goodput_tokens_per_s,
                best.device_tokens_per_s,
            )


def present_goodput(view: CellView, mode: Mode, policy: str) -> float:
    """What the lengths in force would give under the present beliefs; 0 if they harm a device."""
    problem = view.problem
    if policy != "heterogeneous" or mode == "rounds":
        longest = view.round_trip_s[view.lengths > 0].max(initial=0.0)
        plan = bandwidth_for(replace(problem, round_trip_s=float(longest)), view.lengths)
        goodput, rates = plan.goodput_tokens_per_s, plan.expected_tokens / plan.round_s
    elif mode == "stop-and-wait":
        own = evaluate_stop_and_wait(
            problem, view.lengths, view.round_trip_s, least_share=view.least_share
        )
        goodput, rates = own.goodput_tokens_per_s, own.device_tokens_per_s
    else:
        window = evaluate_window(problem, view.survival, view.round_trip_s, view.lengths)
        goodput, rates = window.goodput_tokens_per_s, window.device_tokens_per_s
    if policy != "heterogeneous":
        return goodput
    # Estimates move: what was just not harmful need not be abandoned for the next tick.
    is_harmless = (rates >= 0.98 * view.least_share / problem.base_round_s).all()
    return goodput if is_harmless else 0.0


def _rounds(view: CellView, policy: str) -> Iterator[Allotment]:
    """A round waits for the longest round trip among those that draft: try who may."""
    trips = view.round_trip_s
    share = float(np.min(view.least_share)) if policy == "heterogeneous" else 0.0
    least = share / view.problem.base_round_s
    quantiles = np.linspace(0, 1, ROUND_TRIP_LEVELS)
    best: Allotment | None = None
    for level in np.unique(np.quantile(trips, quantiles, method="higher")):
        problem = replace(
            view.problem,
            acceptance=np.where(trips <= level, view.acceptance, 0.0),
            round_trip_s=float(level),
            objective=Objective(min_goodput_tokens_per_s=least),
        )
        try:
            plan = solve(problem, policy)
        except Infeasible:  # by rounding: the server alone gives more than the least
            plan = solve(replace(problem, objective=Objective()), "server-only")
        rates = plan.expected_tokens / plan.round_s
        found = Allotment(plan.lengths, plan.bandwidths_hz, plan.goodput_tokens_per_s, rates)
        if best is None or found.goodput_tokens_per_s > best.goodput_tokens_per_s:
            best = found
        yield best
