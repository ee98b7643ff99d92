"""Given the draft lengths, the bandwidth: everybody arrives at one deadline, as early as possible.

For lengths L and a common draft-and-upload deadline phi, device k needs the bandwidth

    b_k(L_k, phi) = R_k^{-1}( (Q_k L_k + H_k [L_k>0]) / (phi - L_k s_k) ).

Their sum S(phi) falls with phi, so the least deadline is the root of S(phi) = B. Exact for given
lengths: at the optimum nobody has bandwidth to spare, or moving it to the last would help.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multispin.control.problem import Floats, Lengths, Plan, Problem, evaluate

AnyLengths = npt.NDArray[np.int64] | Floats


def bandwidth_needed(problem: Problem, lengths: AnyLengths, deadline_s: Floats) -> Floats:
    """b_k(L_k, phi) in hertz: lengths [..., K], deadline [..., 1] -> [..., K]; inf: too late."""
    bits = problem.draft_bits(lengths)
    left = deadline_s - lengths * problem.draft_s_per_token
    return problem.uplink.bandwidth(_rate_needed(bits, left))


def need_and_fall(problem: Problem, bits: Floats, left_s: Floats) -> tuple[Floats, Floats]:
    """b_k and -db_k/dphi in hertz, hertz/s, for uploads of ``bits`` in ``left_s`` > 0 [..., K]."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        per_s = 1.0 / np.maximum(left_s, 1e-290)
        rate = bits * per_s
        need, slope, _ = problem.uplink.bandwidth_derivatives(rate)
        return need, slope * rate * per_s


def least_deadline(problem: Problem, lengths: AnyLengths, near: Floats | None = None) -> Floats:
    """phi [...] with sum_k b_k(L_k, phi) = B for lengths [..., K]; 0 where nobody drafts.

    Newton on 1/S - 1/B. 1/S is concave and increasing in phi (each 1/b_k is, and the harmonic mean
    keeps it so), hence from the second step on all lie left of the root and converge quadratically.
    Two bounds keep the first step in the domain: no draft arrives before it would with the whole
    band; and at constant efficiency, by Jensen, S >= W/(phi - d) with W = sum bits/r and d the mean
    of L s with those weights, which is where the iteration starts unless ``near`` [...] is given.
    """
    bits = problem.draft_bits(lengths)
    draft = lengths * problem.draft_s_per_token
    # two roundings up: an upload too short to move the sum must still have time left
    soonest = (draft + bits / problem.alone_rate).max(axis=-1, keepdims=True) * (1 + 4e-16)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if near is None:
            weight = bits * problem.equal_share_hz_s
            total = weight.sum(axis=-1, keepdims=True)
            mean = (weight * draft).sum(axis=-1, keepdims=True) / total
            deadline = np.fmax(soonest, mean + total / problem.bandwidth_hz)
        else:
            deadline = np.maximum(soonest, near[..., None])
        for _ in range(60):
            need, fall = need_and_fall(problem, bits, deadline - draft)
            total = need.sum(axis=-1, keepdims=True)
            excess = total / problem.bandwidth_hz - 1.0
            step = total * excess / fall.sum(axis=-1, keepdims=True)
            step = np.where(np.isfinite(step), step, np.where(total > 0, 0.0, -np.inf))
            later = np.maximum(deadline + step, soonest)
            # quadratic: a mismatch of 1e-8 before the step is below rounding after it
            is_done = np.abs(excess) < 1e-8
            is_done |= np.abs(later - deadline) <= 1e-15 * later
            deadline = later
            if is_done.all():
                break
    return np.asarray(deadline[..., 0])


def bandwidth_for(problem: Problem, lengths: Lengths, deadline: Floats | None = None) -> Plan:
    """The best plan with exactly these lengths [K]: the least deadline and the shares it needs.

    ``deadline`` is the least deadline, where the caller has it already.
    """
    if deadline is None:
        deadline = least_deadline(problem, lengths)
    need = bandwidth_needed(problem, lengths, deadline[..., None])
    # at the first deadline that rounding allows the last bit of a share may be missing
    need = np.where(np.isfinite(need), need, problem.bandwidth_hz)
    total = float(need.sum())
    if total > problem.bandwidth_hz:
        need = need * (problem.bandwidth_hz / total)
    return evaluate(problem, lengths, need)


def _rate_needed(bits: Floats, left_s: Floats) -> Floats:
    """bits / time left: 0 for no bits (if not already late), infinite when no time is left."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rate = bits / left_s
    is_late = left_s <= 0
    if is_late.any():
        rate[is_late & ((left_s < 0) | (bits > 0))] = np.inf
        rate[is_late & (left_s == 0) & (bits == 0)] = 0.0
    return rate
