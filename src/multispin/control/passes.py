"""How long devices wait where there is no barrier: a pass takes whatever is ready, and so on.

W_k, the wait for a pass and the pass itself, of device k that is away from the server for A_k in
between, is a fixed point over all devices. A pass takes T_0 + sum of c_j over the devices in it,
c_j = per_device + per_token (L_j + 1). Seen from device k, with C_j = A_j + W_j, p_j the share of
passes that j is in, and other devices taken as independent of each other:

    p_j = P / C_j (at most 1/2; 1 if A_j = 0)              a device is never in two passes in a row
    P_k = T_0 + sum_{j != k} p_j c_j / e_k                 a pass without k; e_k = P(not empty)
    b_k = 1 - prod_{j != k} A_j / C_j                      the server is busy when k comes back
    W_k = b_k (P_k (1 + m_k(A_k)) - A_k) + own pass_k      Wald: time to the end of the pass
    own pass_k = T_0 + c_k + b_k sum_{j != k} p'_j c_j     p'_j: j came during the pass before

m_k(A) is the expected number of passes that end within A: sum_i Phi((A - i P_k)/deviation_i), for
passes of independent length. It makes W what it is at the extremes: half a pass and the own one for
A >> P, the rest of the pass under way for A < P (two groups take turns), the own pass alone for one
device or an idle server, and a saturated server's rate 1/P for everyone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multispin.control.problem import Floats, Lengths, Problem

JITTER = 0.1  # relative deviation of the time away and of a pass, beyond what the model varies
_TINY = 1e-290


class PassTimes(NamedTuple):
    """The fixed point, all [..., K] seconds but ``is_busy``."""

    wait_s: Floats  # W_k
    before_s: Floats  # P_k
    is_busy: Floats  # b_k
    joined_s: Floats  # of others in the pass that k is in, if the server was busy
    others_s: Floats  # of others in a pass of which nothing is known


def verification_s(problem: Problem, lengths: Lengths) -> Floats:
    """c_k [..., K]: what drafts of these lengths add to a pass."""
    cost = problem.verify_per_device_s + problem.verify_per_token_s * (lengths + 1.0)
    return np.asarray(cost, dtype=np.float64)


def pass_times(
    problem: Problem,
    lengths: Lengths,
    away_s: Floats,
    near_s: Floats | None = None,
    num_steps: int = 40,
) -> PassTimes:
    """The waits for lengths and times away [..., K]; A_k = 0: who stays is in every pass.

    Damped iteration from the waits ``near_s`` [..., K], or from everybody in one pass; the error
    falls by a factor of about 0.6 a step.
    """
    cost = verification_s(problem, lengths)
    fixed = problem.verify_fixed_s
    stays = away_s <= 0
    wait = fixed + cost.sum(axis=-1, keepdims=True) + 0.0 * cost if near_s is None else near_s
    mean_pass = wait.mean(axis=-1, keepdims=True)
    for _ in range(num_steps):
        cycle = away_s + wait
        share = np.where(stays, 1.0, np.minimum(mean_pass / cycle, 0.5))  # p_j
        log_absent = np.log(np.where(stays, _TINY, 1.0 - share))
        log_away = np.log(np.maximum(away_s / cycle, _TINY))
        rows = share * cost
        came = np.where(stays, rows, rows / np.maximum(1.0 - share, 0.5))
        was_in = np.where(stays, 0.0, came * share)
        own = (share, log_absent, log_away, rows, came, was_in, rows * cost * (1.0 - share))
        around, absents, aways, others, came, was_in, variance = _others(np.stack(own))
        not_empty = np.maximum(1.0 - np.exp(absents), _TINY)  # e_k
        before = np.where(around > 0, fixed + others / not_empty, 0.0)  # P_k
        is_busy = np.where(stays, 1.0, 1.0 - np.exp(np.minimum(aways, 0.0)))  # b_k
        joined = np.where(stays, others, np.maximum(came - was_in / not_empty, 0.0))
        own_pass = fixed + cost + is_busy * joined
        rest = _rest_of_pass(before, np.sqrt(variance), away_s)
        wait = 0.5 * (wait + np.where(stays, own_pass, is_busy * rest + own_pass))
        absent = 1.0 - np.exp(log_absent.sum(axis=-1, keepdims=True))
        mean_pass = 0.5 * (mean_pass + fixed + rows.sum(axis=-1, keepdims=True) / absent)
    return PassTimes(wait, before, is_busy, joined, others)


def _others(values: Floats) -> Floats:
    """sum over j != k [..., K] -> [..., K]; what is only rounding counts as 0."""
    total = values.sum(axis=-1, keepdims=True)
    rest = total - values
    return np.where(np.abs(rest) > 1e-12 * np.abs(total), rest, 0.0)


def _rest_of_pass(mean: Floats, spread: Floats, away_s: Floats) -> Floats:
    """P (1 + m(A)) - A: from the arrival, A after a pass began, to the end of the pass under way.

    Passes of mean P and the given deviation; m by the sum for A < 4.5 P (Phi as a logistic curve,
    in single precision: it takes most of the time), beyond by its limit A/P - 1/2 + v/2, v the
    squared coefficient of variation.
    """
    mean = np.maximum(mean, 1e-12)
    x, variation = away_s / mean, (spread / mean) ** 2 + JITTER**2
    i = np.arange(1, 7, dtype=np.float32).reshape(-1, *[1] * x.ndim)
    near = np.minimum(x, 9.0).astype(np.float32)
    deviation = np.sqrt(i * variation.astype(np.float32) + (np.float32(JITTER) * near) ** 2)
    passed = 3.0 + 0.5 * np.tanh(np.float32(0.8) * (near - i) / deviation).sum(axis=0)
    passed = np.where(x > 4.5, x - 0.5 + 0.5 * np.minimum(variation, 1.0), passed)
    return np.maximum(mean * (1.0 + passed - x), 0.0)
