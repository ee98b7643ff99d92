"""One draft length for everybody: bandwidth equalises latency, length by Lambert's W_{-1}.

With a common length L and no header the deadline is L theta, where theta, the latency per token,
is the root of sum_k Q_k/(r_k (theta - s_k)) = B: weak devices get more bandwidth. Source:
arXiv 2606.04581, re-derived; with per-token verification cost t the round is
T_fix + L (theta + t K), so theta + t K takes the place of theta in the closed form.
"""

from __future__ import annotations

import math

import numpy as np

from multispin.control.deadline import bandwidth_for, least_deadline
from multispin.control.fairness import worth
from multispin.control.problem import Lengths, Plan, Problem


def token_latency(problem: Problem) -> float:
    """theta in seconds: what one token for everybody costs at equal latency, headers left out."""
    return float(least_deadline(problem, np.ones(problem.num_devices)))


def closed_form_length(acceptance: float, token_s: float, round_fixed_s: float) -> float:
    """The real L that maximises (1 - a^(L+1)) / (T + L theta), for a in (0, 1), theta, T > 0.

    L = -ln(-W_{-1}(-a^(T/theta - 1)/e))/ln a - 1, the W_{-1} branch in the log domain because
    a^(T/theta) underflows: w = -W_{-1}(-e^(-1-c)) solves w - ln w = 1 + c, w > 1, with
    c = (T/theta - 1) |ln a| and L = ln(w)/|ln a| - 1. For c <= 0 there is no interior optimum and
    L = -1 is returned (draft as little as allowed); a negative L means the same.
    """
    decay = -math.log(acceptance)
    c = (round_fixed_s / token_s - 1.0) * decay
    if c <= 0:
        return -1.0
    w = 1.0 + math.sqrt(2.0 * c) + c  # above the root: e^x >= 1 + x + x^2/2
    for _ in range(60):  # Newton from above on a convex function: falls until rounding stops it
        lower = w - (w - math.log(w) - 1.0 - c) / (1.0 - 1.0 / w)
        if not 1.0 < lower < w:
            break
        w = lower
    return math.log(w) / decay - 1.0


def common_length(problem: Problem) -> Lengths:
    """The best common length, as [K] equal integers.

    Equal acceptance, no header, sum goodput: the better neighbour of the closed form, or the
    minimum (drafting nothing saves the round trip). Otherwise every length when there are at most
    33; above that a grid of 33 is refined around its best, which is exact where the objective has
    one peak: the numerator is concave in L, and without headers the round is affine in L.
    """
    low, high = problem.min_draft_length, problem.max_draft_length
    a = problem.acceptance
    theta = math.inf
    if (
        problem.objective.kind == "sum"
        and not problem.objective.owes
        and not problem.has_headers
        and bool((a == a[0]).all())
        and 0 < a[0] < 1
    ):
        theta = token_latency(problem) + problem.verify_per_token_s * problem.num_devices
    if 0 < theta < math.inf:
        exact = closed_form_length(float(a[0]), theta, problem.base_round_s + problem.round_trip_s)
        near = np.clip([math.floor(exact), math.floor(exact) + 1], low, high)
        return _best(problem, np.unique([low, *near]))
    span = np.array([low, high])
    while True:
        grid = np.unique(np.linspace(span[0], span[-1], 33).round().astype(np.int64))
        best = int(_best(problem, np.unique([low, *grid]))[0])
        if span[-1] - span[0] <= 32 or best == low:
            return np.full(problem.num_devices, best, dtype=np.int64)
        at = int(np.searchsorted(grid, best))
        span = grid[max(at - 1, 0) : at + 2]


def homogeneous(problem: Problem) -> Plan:
    """The best common draft length with the bandwidths that equalise latency."""
    return bandwidth_for(problem, common_length(problem))


def _best(problem: Problem, lengths: Lengths) -> Lengths:
    rows = np.repeat(lengths[:, None], problem.num_devices, axis=1)
    deadlines = None
    if not problem.has_headers:
        deadlines = np.asarray(lengths * token_latency(problem), dtype=np.float64)
    return np.asarray(rows[int(worth(problem, rows, deadlines).argmax())])
