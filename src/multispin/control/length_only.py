"""Equal bandwidth for every device, each device's length optimised (the paper's Uni-BW), exactly.

With bandwidth B/K device k needs d_k(L) = L (s_k + Q_k/R_k) + H_k/R_k, so under a deadline each
drafts what fits and only the K (max - min) values of d are candidates for the deadline: sorted
once, all are priced by one running sum.
"""

from __future__ import annotations

import numpy as np

from multispin.control.fairness import time_price, utility, value
from multispin.control.problem import Floats, Lengths, Plan, Problem, evaluate


def equal_shares(problem: Problem) -> Floats:
    """B/K for everyone, drafting or not."""
    return np.full(problem.num_devices, problem.bandwidth_hz / problem.num_devices)


def equal_share_lengths(problem: Problem) -> Lengths:
    """The best lengths [K] under equal bandwidth.

    With a per-token verification cost t, tokens that bring less than price * t are left out, and
    the price of time is raised until it no longer changes (Dinkelbach 1967).
    """
    low, high = problem.min_draft_length, problem.max_draft_length
    num, cost = problem.num_devices, problem.verify_per_token_s
    rate = problem.uplink.rate(equal_shares(problem))
    options = np.arange(low, high + 1)[:, None]  # [O, 1]
    times = (
        options * problem.draft_s_per_token
        + problem.draft_bits(np.repeat(options, num, axis=1)) / rate
    )  # [O, K]
    gains = np.diff(utility(problem, options), axis=0).ravel()  # of options 1.. over the one before
    start = utility(problem, options[0]).sum()
    floor_s = float(times[0].max())
    order = np.argsort(times[1:].ravel(), kind="stable")  # ties keep a device's tokens in order
    devices = np.tile(np.arange(num), len(options) - 1)

    lengths = np.full(num, low, dtype=np.int64)
    best, round_s = -np.inf, problem.base_round_s
    while True:
        chosen = order
        if cost > 0 and np.isfinite(best):
            chosen = order[gains[order] > time_price(problem, best, round_s) * cost]
        deadline = np.maximum(np.append(floor_s, times[1:].ravel()[chosen]), floor_s)
        total = num * low + np.arange(len(chosen) + 1)
        rounds = deadline + problem.base_round_s + cost * total + problem.round_trip_s * (total > 0)
        worth = value(problem, start + np.append(0.0, np.cumsum(gains[chosen])), rounds)
        at = int(worth.argmax())
        if worth[at] <= best:
            return lengths
        best, round_s = float(worth[at]), float(rounds[at])
        lengths = low + np.bincount(devices[chosen[:at]], minlength=num)
        if cost == 0:
            return lengths


def length_only(problem: Problem) -> Plan:
    """Equal bandwidth, optimised lengths. A minimum goodput is checked, not optimised for."""
    return evaluate(problem, equal_share_lengths(problem), equal_shares(problem))
