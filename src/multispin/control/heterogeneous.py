"""Draft length and bandwidth of every device together, as many tokens per second as possible.

1. Deadline. For a deadline phi the best real lengths follow from two prices (relaxation.py); their
   utility V(phi) is concave without headers (the feasible set is a convex cone in (L, phi)), so
   that the objective has one peak in phi: a grid is refined around its best, all points at once.
2. Price of bandwidth. At each phi the demand falls with the price: bracketed secant.
3. Whole numbers. Each grid point is rounded by price and given its exact deadline; the best few,
   and the plans of the simpler policies, start the exact moves of integer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multispin.control.deadline import bandwidth_for, bandwidth_needed, least_deadline
from multispin.control.fairness import (
    break_even_round_s,
    require_minimum,
    shortest_lengths,
    time_price,
    utility,
    worth,
)
from multispin.control.homogeneous import common_length
from multispin.control.integer import improve, round_by_price
from multispin.control.length_only import equal_share_lengths
from multispin.control.problem import Floats, Lengths, Plan, Problem
from multispin.control.relaxation import Relaxation


def heterogeneous(problem: Problem) -> Plan:
    """The best lengths and bandwidths for the problem's objective; Infeasible if it has none.

    Never below any other policy: their lengths are among the starts.
    """
    known = np.stack(
        [require_minimum(problem), common_length(problem), equal_share_lengths(problem)]
    )
    values = worth(problem, known)
    at = int(values.argmax())
    found, found_values = search_deadline(problem, known[at], float(values[at]))
    starts, values = np.concatenate([known, found]), np.concatenate([values, found_values])
    best, best_value = starts[int(values.argmax())], -np.inf
    for start in _best_rows(starts, values, num=int(np.clip(32 // problem.num_devices, 1, 8))):
        lengths, value = improve(problem, starts[start], float(values[start]))
        if value > best_value:
            best, best_value = lengths, value
    return bandwidth_for(problem, best)


def search_deadline(problem: Problem, lengths: Lengths, best: float) -> tuple[Lengths, Floats]:
    """Rounded plans [C, K] of a refined grid of deadlines, and what they are worth [C].

    ``lengths`` [K], worth ``best``, is the best plan so far: it bounds the deadlines worth a look.
    """
    low, high = _deadline_range(problem, best)
    relaxation = Relaxation(problem)
    candidates: list[Lengths] = [lengths[None, :]]
    candidate_values: list[Floats] = [np.asarray([best])]
    # few devices feel every token and many feel none: the moves that follow reach less far
    fineness = float(np.clip(2.0 / problem.num_devices, 0.02, 0.1))
    num_points = int(np.clip(320 // problem.num_devices, 6, 48))
    round_s = float(least_deadline(problem, lengths) + problem.overhead_s(lengths))
    shares: Shares | None = None
    while low < high:
        grid = np.exp(np.linspace(np.log(low), np.log(high), num_points))[:, None]
        price = time_price(problem, best, round_s)
        shares = share_bandwidth(relaxation, grid, price, shares)
        rounded = round_by_price(problem, shares.lengths, grid, np.exp(shares.log_price), price)
        rounded = np.maximum(rounded, _owed(problem, grid))
        plans = np.concatenate([rounded, shares.lengths])
        deadlines = least_deadline(problem, plans, near=np.tile(grid[:, 0], 2))
        values = worth(problem, plans, deadlines)
        candidates.append(rounded)
        candidate_values.append(values[:num_points])
        top = int(values[:num_points].argmax())
        if values[top] > best:
            best = float(values[top])
            round_s = float(deadlines[top] + problem.overhead_s(rounded[top]))
        peak = int(values[num_points:].argmax())
        low, high = float(grid[max(peak - 1, 0), 0]), float(grid[min(peak + 1, num_points - 1), 0])
        if high < low * (1.0 + fineness):
            break
    return np.concatenate(candidates), np.concatenate(candidate_values)


@dataclass(frozen=True, eq=False)
class Shares:
    """The real-valued optimum at each of P deadlines."""

    deadline_s: Floats  # [P, 1]
    log_price: Floats  # [P, 1], ln q in utility per hertz
    lengths: Floats  # [P, K]


def share_bandwidth(
    relaxation: Relaxation, deadline_s: Floats, price: float, near: Shares | None = None
) -> Shares:
    """Real lengths and the bandwidth price at which together they need B, per deadline [P, 1].

    Demand falls with the price q; ln(demand) is nearly straight in ln q, so a bracketed secant
    converges in a few steps, fewer from the prices at ``near`` deadlines. Where B suffices at any
    price, q ends close to 0.
    """
    problem = relaxation.problem
    budget = problem.bandwidth_hz
    if near is None:
        x, lengths = np.log(price * deadline_s / (2.0 * budget)), None
    else:
        x = np.interp(deadline_s, near.deadline_s[:, 0], near.log_price[:, 0])
        lengths = near.lengths[np.searchsorted(near.deadline_s[1:, 0], deadline_s[:, 0])]
    y, stride = np.zeros_like(x), np.full_like(x, 1.5)  # stride: how far ln q goes per ln(demand)
    x_low, x_high = np.full_like(x, -np.inf), np.full_like(x, np.inf)
    y_low, y_high = np.ones_like(x), -np.ones_like(x)
    for step in range(6 if near is None else 3):
        if step > 0:
            is_bracketed = np.isfinite(x_low) & np.isfinite(x_high)
            share = np.minimum(np.maximum(y_low / (y_low - y_high), 0.1), 0.9)
            onward = x + np.minimum(np.maximum(y * stride, -8.0), 8.0)
            between = np.where(is_bracketed, x_low, 0.0) * (1.0 - share)
            between += np.where(is_bracketed, x_high, 0.0) * share
            x_last, y_last = x, y
            x = np.where(is_bracketed, between, onward)
            x = np.minimum(np.maximum(x, -600.0), 600.0)
        lengths, demand = _respond(relaxation, deadline_s, np.exp(x), price, lengths)
        y = np.log(np.minimum(np.maximum(demand / budget, 1e-6), 1e6))
        if step > 0:
            falls = (y - y_last) * (x - x_last) < 0
            stride = np.where(falls, (x - x_last) / np.where(falls, y_last - y, 1.0), stride)
        above = y > 0
        x_low, y_low = np.where(above, x, x_low), np.where(above, y, y_low)
        x_high, y_high = np.where(above, x_high, x), np.where(above, y_high, y)
    assert lengths is not None
    return Shares(deadline_s, x, lengths)


def _respond(
    relaxation: Relaxation,
    deadline_s: Floats,
    bandwidth_price: Floats,
    price: float,
    near: Floats | None,
) -> tuple[Floats, Floats]:
    """Each device's best real length at these prices, and their demand in hertz [P, K], [P, 1].

    A length is 0 where the header is not worth paying.
    """
    problem = relaxation.problem
    lengths = relaxation.lengths(deadline_s, bandwidth_price, price, near)
    lengths = np.maximum(lengths, _owed(problem, deadline_s))
    hertz = bandwidth_needed(problem, lengths, deadline_s)
    if problem.has_headers and problem.min_draft_length == 0:
        gain = utility(problem, lengths) - utility(problem, np.zeros(problem.num_devices))
        gain = gain - price * problem.verify_per_token_s * lengths
        is_off = (gain <= bandwidth_price * hertz) & (_owed(problem, deadline_s) == 0)
        lengths, hertz = np.where(is_off, 0.0, lengths), np.where(is_off, 0.0, hertz)
    return lengths, hertz.sum(axis=-1, keepdims=True)


def _owed(problem: Problem, deadline_s: Floats) -> Lengths:
    """Lengths [P, K] that the minimum goodput asks for in a round with this deadline [P, 1]."""
    least = problem.objective.min_goodput_tokens_per_s
    if least == 0:
        return np.zeros(1, dtype=np.int64)
    round_s = deadline_s[:, 0] + problem.base_round_s + problem.round_trip_s
    return np.minimum(shortest_lengths(problem, round_s, least), problem.max_draft_length)


def _deadline_range(problem: Problem, best: float) -> tuple[float, float]:
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
    latest = float(break_even_round_s(problem, total, best)) - problem.base_round_s
    return max(soonest, 1e-5 * problem.base_round_s), latest


def _best_rows(rows: Lengths, values: Floats, num: int) -> list[int]:
    """Indices of the ``num`` best distinct rows [C, K]."""
    chosen: list[int] = []
    for index in np.argsort(-values, kind="stable"):
        if len(chosen) == num or values[index] == -np.inf:
            break
        if not any((rows[index] == rows[other]).all() for other in chosen):
            chosen.append(int(index))
    return chosen
