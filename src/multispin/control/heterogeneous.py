"""Draft length and bandwidth of every device together, as many tokens per second as possible.

1. Deadline. For a deadline phi the best real lengths follow from two prices (relaxation.py); their
   utility V(phi) is concave without headers (the feasible set is a convex cone in (L, phi)), so
   that the objective has one peak in phi: a grid is refined around its best, all points at once.
2. Price of bandwidth. At each phi the demand falls with the price: Newton for the price and the
   lengths together.
3. Whole numbers. Each grid point is rounded by price and given its exact deadline; the best few,
   and the plans of the simpler policies, start the exact moves of integer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multispin.control.deadline import bandwidth_for
from multispin.control.fairness import (
    Valued,
    break_even_round_s,
    owed_lengths,
    require_minimum,
    time_price,
    utility,
    value,
    valued,
)
from multispin.control.homogeneous import common_length
from multispin.control.integer import improve, round_by_price
from multispin.control.length_only import equal_share_lengths
from multispin.control.problem import Floats, Lengths, Plan, Problem
from multispin.control.relaxation import Relaxation

_MAX_STEPS = 12  # of the Newton iteration for prices; four to seven are usual
_FARTHEST = 2.0  # what ln q may change in one of them


def heterogeneous(problem: Problem) -> Plan:
    """The best lengths and bandwidths for the problem's objective; Infeasible if it has none.

    Never below any other policy: their lengths are among the starts.
    """
    known = valued(
        problem,
        np.stack([require_minimum(problem), common_length(problem), equal_share_lengths(problem)]),
    )
    starts = search_deadline(problem, known)
    num = int(np.clip(32 // problem.num_devices, 1, 8))
    best = improve_best(problem, starts, num)
    return bandwidth_for(problem, best.lengths, best.deadline_s)


def improve_best(problem: Problem, starts: Valued, num: int) -> Valued:
    """The best local optimum from the ``num`` best distinct plans of ``starts`` [C, K]."""
    improved = [improve(problem, starts.row(at)) for at in _best_rows(starts, num)]
    return max(improved, key=lambda plan: float(plan.value))


def search_deadline(problem: Problem, known: Valued) -> Valued:
    """The ``known`` plans and the rounded ones of a refined grid of deadlines [C, K].

    They bound the deadlines worth a look: no plan has an earlier one than the first
    of them, which drafts as little as allowed.
    """
    best = known.best()
    low, high = _deadline_range(problem, best)
    low = max(low, float(known.deadline_s[0]))
    relaxation = Relaxation(problem)
    found = [known]
    # few devices feel every token and many feel none: the moves that follow reach less far
    fineness = float(np.clip(2.0 / problem.num_devices, 0.04, 0.1))
    num_points = int(np.clip(320 // problem.num_devices, 6, 48))
    shares: Shares | None = None
    while low < high:
        grid = np.exp(np.linspace(np.log(low), np.log(high), num_points))[:, None]
        round_s = best.deadline_s + problem.overhead_s(best.lengths)
        price = time_price(problem, float(best.value), float(round_s))
        shares = share_bandwidth(relaxation, grid, price, shares)
        rounded = round_by_price(
            problem, shares.if_drafting, shares.least, grid, np.exp(shares.log_price), price
        )
        found.append(valued(problem, rounded, near=grid[:, 0]))
        best = max(best, found[-1].best(), key=lambda plan: float(plan.value))
        values = shares.values(problem, price)
        peak = int(values.argmax())
        around = slice(max(peak - 1, 0), peak + 2)
        low, high = float(grid[around][0, 0]), float(grid[around][-1, 0])
        # a steep side, where one device just makes it, takes a closer look
        is_flat = np.ptp(values[around]) < 1e-2 * abs(values[peak])
        if high < low * (1.0 + (fineness if is_flat else 1e-4)):
            break
    return Valued(
        np.concatenate([plans.lengths for plans in found]),
        np.concatenate([plans.deadline_s for plans in found]),
        np.concatenate([plans.value for plans in found]),
    )


@dataclass(frozen=True, eq=False)
class Shares:
    """The real-valued optimum at each of P deadlines."""

    deadline_s: Floats  # [P, 1]
    log_price: Floats  # [P, 1], ln q in utility per hertz
    least: Lengths  # [P, K] or [1], what every device must draft
    lengths: Floats  # [P, K]
    if_drafting: Floats  # [P, K], the same before those whom the header keeps from drafting
    demand_hz: Floats  # [P, 1], B but for a last inaccuracy

    def at(self, deadline_s: Floats) -> tuple[Floats, Floats]:
        """ln q and ``if_drafting`` at other deadlines [P, 1], by interpolation."""
        at = np.interp(deadline_s[:, 0], self.deadline_s[:, 0], np.arange(len(self.deadline_s)))
        below = at.astype(np.int64)
        above = np.minimum(below + 1, len(self.deadline_s) - 1)
        share = (at - below)[:, None]
        log_price = self.log_price[below] * (1.0 - share) + self.log_price[above] * share
        drafts = self.if_drafting[below] * (1.0 - share) + self.if_drafting[above] * share
        return log_price, drafts

    def values(self, problem: Problem, price: float) -> Floats:
        """The objective [P]; hertz too many are paid for with time, at the prices q and p.

        Right to second order in the mismatch, without another root. A surplus is worth no more than
        all of the deadline: its price is off where the whole band is not wanted.
        """
        excess = self.demand_hz / problem.bandwidth_hz - 1.0
        rate_s = np.exp(self.log_price) * problem.bandwidth_hz / price
        late_s = excess * np.minimum(rate_s, self.deadline_s)
        round_s = (self.deadline_s + late_s)[:, 0] + problem.overhead_s(self.lengths)
        return value(problem, utility(problem, self.lengths).sum(axis=-1), round_s)


def share_bandwidth(
    relaxation: Relaxation,
    deadline_s: Floats,
    price: float,
    near: Shares | None = None,
    at_least: Lengths | None = None,
) -> Shares:
    """Real lengths and the bandwidth price at which together they need B, per deadline [P, 1].

    None is below what is owed in a round with that deadline, nor below ``at_least`` [P, K].
    Newton for both at once: ln(demand) falls and is nearly straight in ln q, and the lengths go
    along. It starts from ``near`` deadlines, or from the closed form. Where B suffices at any price
    q ends close to 0.
    """
    problem = relaxation.problem
    least = _owed(problem, deadline_s)
    if at_least is not None:
        least = np.maximum(least, at_least)
    if near is None:
        log_price = np.log(price * deadline_s / (2.0 * problem.bandwidth_hz))
        drafts = relaxation.closed_form(deadline_s, np.exp(log_price))
    else:
        log_price, drafts = near.at(deadline_s)
    shift = excess = np.zeros_like(log_price)
    drafts_slope = np.zeros(1)
    least_hz, most_hz = 1e-6 * problem.bandwidth_hz, 1e6 * problem.bandwidth_hz
    for _ in range(_MAX_STEPS):
        log_price = np.minimum(np.maximum(log_price + shift, -600.0), 600.0)
        bandwidth_price = np.exp(log_price)
        drafts, hertz, drafts_slope, hertz_slope = relaxation.respond(
            deadline_s, bandwidth_price, price, least, drafts + drafts_slope * shift
        )
        lengths = drafts
        if problem.has_headers:
            is_busy = _is_busy(problem, drafts, bandwidth_price * hertz, price) | (least > 0)
            lengths, hertz, hertz_slope = drafts * is_busy, hertz * is_busy, hertz_slope * is_busy
        demand = np.minimum(np.maximum(hertz.sum(axis=-1, keepdims=True), least_hz), most_hz)
        last, excess = excess, np.log(demand / problem.bandwidth_hz)
        if (np.minimum(np.abs(excess), np.abs(excess - last)) < 1e-2).all():
            break
        elasticity = -hertz_slope.sum(axis=-1, keepdims=True) / demand
        shift = np.minimum(np.maximum(excess / np.maximum(elasticity, 0.1), -_FARTHEST), _FARTHEST)
    return Shares(deadline_s, log_price, least, lengths, drafts, demand)


def _is_busy(
    problem: Problem, lengths: Floats, charge: Floats, price: float
) -> npt.NDArray[np.bool_]:
    """Which devices had better draft these lengths and pay than not draft [P, K]: the header."""
    gain = utility(problem, lengths) - utility(problem, np.zeros(problem.num_devices))
    return np.asarray(gain - price * problem.verify_per_token_s * lengths > charge)


def _owed(problem: Problem, deadline_s: Floats) -> Lengths:
    """Least lengths [P, K] or [1]: what is owed in a round with this deadline [P, 1]."""
    if not problem.objective.owes:
        return np.asarray([problem.min_draft_length])
    round_s = deadline_s[:, 0] + problem.drafting_round_s
    return np.minimum(owed_lengths(problem, round_s), problem.max_draft_length)


def _deadline_range(problem: Problem, best: Valued) -> tuple[float, float]:
    """Deadlines outside which nothing beats ``best``.

    Above, even the longest drafts would not pay for the round; below, no device can send a token,
    or the deadline is a hundred-thousandth of the round and might as well be that.
    """
    ones = np.full(problem.num_devices, max(problem.min_draft_length, 1))
    soonest = float(
        (ones * problem.draft_s_per_token + problem.draft_bits(ones) / problem.alone_rate).min()
    )
    longest = np.full(problem.num_devices, problem.max_draft_length)
    total = np.asarray(utility(problem, longest).sum())
    latest = float(break_even_round_s(problem, total, float(best.value))) - problem.base_round_s
    return max(soonest, 1e-5 * problem.base_round_s), latest


def _best_rows(plans: Valued, num: int) -> list[int]:
    """Indices of the ``num`` best distinct plans."""
    chosen: list[int] = []
    for index in np.argsort(-plans.value, kind="stable"):
        if len(chosen) == num or plans.value[index] == -np.inf:
            break
        if not any((plans.lengths[index] == plans.lengths[other]).all() for other in chosen):
            chosen.append(int(index))
    return chosen
