"""The objective's maximum while every device keeps its inference outage.

R whole rounds fit into the deadline D iff T is in (D/(R+1), D/R], so that the constraint cuts the
plans into paces: at pace R nobody drafts less than l_k(R) (outage.py) and no round is longer than
D/R. Fewer rounds ask for longer drafts. Within a pace the relaxed problem is that of
heterogeneous.py on a convex set: one peak over the deadlines, or the end.

1. The best plan without the constraint, if it keeps it, is the best.
2. Paces that no plan keeps are left out: already the shortest drafts l(R) take longer than D/R.
3. The relaxed optimum of all others, at several deadlines each, in one array; rounded by price, and
   shortened where its tokens make the round too long.
4. From the best of these plans on, the exact moves of integer.py, which cross from pace to pace.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multispin.control.deadline import bandwidth_for, least_deadline
from multispin.control.fairness import (
    Valued,
    outage_lengths,
    require_minimum,
    time_price,
    utility,
    valued,
    without_outage,
)
from multispin.control.heterogeneous import heterogeneous, improve_best, share_bandwidth
from multispin.control.integer import round_by_price
from multispin.control.outage import Outage, whole_rounds
from multispin.control.problem import Floats, Lengths, Plan, Problem
from multispin.control.relaxation import Relaxation
from multispin.errors import BadInput

_NEIGHBOURS = 4  # deadlines, of which the best plan is a start
_EARLIEST = 1e-4  # of a round: an earlier deadline might as well be that
_ROUNDING = 1 + 1e-9


def outage_constrained(problem: Problem) -> Plan:
    """The best plan found that keeps the objective's outage; Infeasible if there is none.

    Raises BadInput where the objective names no outage.
    """
    outage = problem.objective.outage
    if outage is None:
        raise BadInput(
            "objective.outage_tokens",
            "(missing)",
            "policy outage-constrained needs objective.outage_tokens, outage_deadline_s and "
            "max_outage to keep: give all three",
        )
    free = heterogeneous(without_outage(problem))
    known = valued(problem, np.stack([free.lengths, require_minimum(problem)]))
    if known.value[0] > -np.inf:
        return free
    least = known.row(1)
    starts = _starts(problem, _paces(problem, outage, least), least)
    best = improve_best(problem, starts, int(np.clip(32 // problem.num_devices, 3, 8)))
    return bandwidth_for(problem, best.lengths, best.deadline_s)


class _Paces(NamedTuple):
    """P of them, slowest first."""

    least: Lengths  # [P, K] nobody drafts less
    deadline_s: Floats  # [P] of these
    longest_round_s: Floats  # [P]


def _paces(problem: Problem, outage: Outage, known: Valued) -> _Paces:
    """Those that a plan can keep, ``known`` for one; of those with equal drafts the slowest."""
    shortest = np.full(problem.num_devices, problem.min_draft_length, dtype=np.int64)
    soonest_s = least_deadline(problem, shortest) + problem.overhead_s(shortest)
    round_s = known.deadline_s + problem.overhead_s(known.lengths)
    most, kept = np.minimum(
        whole_rounds(outage.deadline_s, np.array([soonest_s, round_s])), outage.tokens
    )
    num = min(int(most), max(16, 2**19 // problem.num_devices))  # not all for many devices
    rounds = np.unique(np.append(np.linspace(1, most, num).round(), kept))
    longest_s = outage.deadline_s / rounds
    least = outage_lengths(problem, longest_s)
    is_slowest = np.append(True, (least[1:] != least[:-1]).any(axis=-1))
    is_kept = is_slowest & (least <= problem.max_draft_length).all(axis=-1)
    least, longest_s = least[is_kept], longest_s[is_kept]
    deadline_s = least_deadline(problem, least)
    is_kept = deadline_s + problem.overhead_s(least) <= longest_s * _ROUNDING
    return _Paces(least[is_kept], deadline_s[is_kept], longest_s[is_kept])


def _starts(problem: Problem, paces: _Paces, known: Valued) -> Valued:
    """``known`` (one row) and the plans that relaxed optima of the paces lead to [C, K]."""
    least, soonest_s, longest_s = paces
    num = _NEIGHBOURS * int(np.clip(256 // len(least), 1, 8))
    fixed_s = problem.drafting_round_s + problem.verify_per_token_s * least.sum(axis=-1)
    soonest_s = np.maximum(soonest_s, _EARLIEST * longest_s)
    latest_s = np.maximum(longest_s - fixed_s, soonest_s)
    grid = np.geomspace(soonest_s, latest_s, num, axis=-1).reshape(-1, 1)
    least, longest_s = np.repeat(least, num, axis=0), np.repeat(longest_s, num)

    round_s = known.deadline_s + problem.overhead_s(known.lengths)
    price = time_price(problem, float(known.value), float(round_s))
    shares = share_bandwidth(Relaxation(problem), grid, price, at_least=least)
    lengths = round_by_price(
        problem, shares.if_drafting, shares.least, grid, np.exp(shares.log_price), price
    )
    if problem.verify_per_token_s > 0:
        spare_s = longest_s - problem.drafting_round_s - least_deadline(problem, lengths)
        lengths = _shortened(problem, lengths, least, spare_s / problem.verify_per_token_s)
    plans = valued(problem, lengths)
    best = plans.value.reshape(-1, _NEIGHBOURS).argmax(axis=-1)
    best += np.arange(0, len(lengths), _NEIGHBOURS)
    return Valued(
        np.concatenate([known.lengths[None], plans.lengths[best]]),
        np.append(known.deadline_s, plans.deadline_s[best]),
        np.append(known.value, plans.value[best]),
    )


def _shortened(problem: Problem, lengths: Lengths, least: Lengths, most: Floats) -> Lengths:
    """Lengths [P, K] of at most ``most`` tokens [P] in all, without those that bring least."""
    num_over = lengths.sum(axis=-1) - np.floor(most * _ROUNDING)
    tokens = np.arange(problem.max_draft_length, 0, -1)[:, None]  # equals: a draft's last goes
    gain = utility(problem, tokens) - utility(problem, tokens - 1)  # [L, K]
    is_there = (tokens > least[:, None]) & (tokens <= lengths[:, None])  # [P, L, K]
    gain = np.where(is_there, gain, np.inf).reshape(len(lengths), -1)
    goes = np.zeros(gain.shape, dtype=bool)
    is_first = np.asarray(np.arange(gain.shape[-1]) < num_over[:, None])
    np.put_along_axis(goes, np.argsort(gain, axis=-1, kind="stable"), is_first, axis=-1)
    return np.asarray(lengths - (goes.reshape(is_there.shape) & is_there).sum(axis=1))
