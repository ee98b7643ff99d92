"""From real to whole draft lengths: rounding by price, then exact moves among marginal devices.

Rounding the continuous optimum is not optimal: one token is a big step for the shared bandwidth.
``improve`` tries every change of one, two, three and four devices that the prices call cheap and
accepts only what is better with the exact deadline of the new lengths.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.control.deadline import bandwidth_needed, need_and_fall
from multispin.control.fairness import (
    Valued,
    bearable_round_s,
    break_even_round_s,
    time_price,
    utility,
    valued,
)
from multispin.control.problem import Floats, Lengths, Problem

_MAX_PASSES = 60
_LEAST_GAIN = 1e-7  # relative; a thousandth of what the solver promises


def round_by_price(
    problem: Problem,
    relaxed: Floats,
    least: Lengths,
    deadline_s: Floats,
    bandwidth_price: Floats,
    price: float,
) -> Lengths:
    """Whole lengths [P, K] that maximise u(L) - p t L - q b(L, phi) next to ``relaxed`` [P, K].

    Exact per device: the score is concave over L >= 1, so that the best integer is a neighbour of
    the best real number, or the least when the header makes drafting not worth its while.
    """
    down = np.floor(relaxed).astype(np.int64)
    options = [down, np.minimum(down + 1, problem.max_draft_length)]
    if problem.has_headers:
        options.append(np.broadcast_to(least, down.shape))
    lengths = np.stack(options)  # [O, P, K]
    tokens = price * problem.verify_per_token_s * lengths
    charge = bandwidth_price * bandwidth_needed(problem, lengths, deadline_s)
    best = (utility(problem, lengths) - tokens - charge).argmax(axis=0)
    return np.asarray(np.take_along_axis(lengths, best[None], axis=0)[0])


def improve(problem: Problem, plan: Valued) -> Valued:
    """A local optimum under the moves of this module, from ``plan`` (one row)."""
    # one move of thousands changes next to nothing and costs a look at all: work stays near n log n
    for _ in range(max(4, min(_MAX_PASSES, 4096 // problem.num_devices))):
        candidates = _neighbours(problem, plan)
        if len(candidates) == 0:
            break
        found = valued(problem, candidates, near=plan.deadline_s).best()
        if found.value <= plan.value + _LEAST_GAIN * abs(plan.value):
            break
        plan = found
    return plan


class _Moves(NamedTuple):
    """Changes of one device each [M], in rising order of what they lose by price."""

    devices: npt.NDArray[np.int64]
    lengths: Lengths  # the new ones
    tokens: Floats  # by how much longer
    utility: Floats  # and how the utility,
    need_hz: Floats  # the bandwidth at the present deadline
    fall: Floats  # and how fast that falls with the deadline, change


def _neighbours(problem: Problem, plan: Valued) -> Lengths:
    """Combinations of cheap moves that beat ``plan`` [C, K], only the most promising.

    A candidate beats it iff its drafts fit into the bandwidth at the deadline at which it would
    break even, or at the last that all devices bear: one evaluation of S(phi), no root. S is
    convex, so that its tangent at the present deadline, the sum of the moves' own, tells without
    any evaluation that most do not.
    """
    moves, need, fall = _cheapest_moves(problem, plan)
    picks, is_new, is_pair = _combinations(len(moves.devices), _budget(problem))
    moved = moves.devices[picks]  # [C, 4]
    clash = ((moved[:, :, None] == moved[:, None, :]) & is_pair).any(axis=(1, 2))
    picks, is_new = picks[~clash], is_new[~clash]

    def changed(before: float, change: Floats) -> Floats:
        return np.asarray(before + (change[picks] * is_new).sum(axis=-1))

    total = changed(float(utility(problem, plan.lengths).sum()), moves.utility)
    tokens = changed(float(plan.lengths.sum()), moves.tokens)
    latest = break_even_round_s(problem, total, float(plan.value))
    if problem.objective.owes:
        latest = np.minimum(latest, bearable_after(problem, plan.lengths, moves, picks))
    latest -= problem.overhead_s(tokens[:, None])
    later = latest - plan.deadline_s
    bound = changed(need, moves.need_hz) - later * changed(fall, moves.fall)
    likely = np.flatnonzero((bound < problem.bandwidth_hz) & (latest >= 0))
    most = max(16, 2**13 // problem.num_devices)  # less work for many devices
    likely = likely[np.argsort(bound[likely])[:most]]
    picks, latest = picks[likely], latest[likely]
    candidates = np.repeat(plan.lengths[None, :], len(picks), axis=0)
    candidates[np.arange(len(picks))[:, None], moves.devices[picks]] = moves.lengths[picks]
    needs = bandwidth_needed(problem, candidates, latest[:, None]).sum(axis=-1)
    better = np.flatnonzero(needs < problem.bandwidth_hz)
    return np.asarray(candidates[better[np.argsort(needs[better])[:16]]])


def bearable_after(
    problem: Problem, lengths: Lengths, moves: _Moves, picks: npt.NDArray[np.int64]
) -> Floats:
    """The longest round [C] that every device bears after the moves of ``picks`` [C, 4]."""
    before = bearable_round_s(problem, lengths)
    after = bearable_round_s(problem, moves.lengths, moves.devices)
    strictest = np.argsort(before)[:5]  # four can move: one of these stays, if any device does
    has_moved = (moves.devices[picks][:, :, None] == strictest).any(axis=1)
    stays = np.where(has_moved, np.inf, before[strictest]).min(axis=1)
    return np.asarray(np.minimum(stays, after[picks].min(axis=1)))


def _budget(problem: Problem) -> int:
    """About how many combinations to look at: all that matter for few devices."""
    return int(np.clip(2**13 // problem.num_devices, 256, 4096))


def _cheapest_moves(problem: Problem, plan: Valued) -> tuple[_Moves, float, float]:
    """The moves that lose least by price; hertz needed and their fall per second as things are.

    The price of bandwidth is that of time over how fast S(phi) falls at the present deadline.
    Where the round must not be longer, time is worth what the best token more would make of it.
    """
    lengths, deadline = plan.lengths, plan.deadline_s
    reach = int(np.clip(64 // problem.num_devices, 2, 64))
    shifts = np.arange(-reach, reach + 1)[:, None]
    low, high = problem.min_draft_length, problem.max_draft_length
    # the last option drops to the minimum, which saves the header; the first ones, clipped at the
    # limits, must not repeat it or each other
    wanted = np.concatenate([lengths + shifts, np.full((1, problem.num_devices), low)])
    options = np.minimum(np.maximum(wanted, low), high)  # [O, K]
    is_move = (wanted == options) & (options != lengths)
    is_move[-1] &= lengths - reach > low

    left = deadline - options * problem.draft_s_per_token
    bits = problem.draft_bits(options)
    need, fall = need_and_fall(problem, bits, left)
    # too late at this deadline: nothing is known of a later one but that the need is 0 or more
    is_late = (left < 0) | ~(need <= problem.bandwidth_hz * (1 + 1e-9))
    need, fall = np.where(is_late, 0.0, need), np.where(is_late, 0.0, fall)
    gain = utility(problem, options)
    gain -= gain[reach]
    total_fall = float(fall[reach].sum())
    price = time_price(problem, float(plan.value), float(deadline + problem.overhead_s(lengths)))
    tokens = np.asarray(options - lengths, dtype=np.float64)
    late_s = bits / problem.alone_rate - left
    s_per_hz = 1.0 / total_fall if total_fall > 0 else 0.0
    seconds = np.where(is_late, late_s, s_per_hz * (need - need[reach]))
    seconds += problem.verify_per_token_s * tokens
    if problem.objective.owes:
        more = is_move[reach + 1] & (seconds[reach + 1] > 0)
        price = max(price, (gain[reach + 1, more] / seconds[reach + 1, more]).max(initial=0.0))
    loss = price * seconds - gain
    loss[~is_move] = np.inf

    flat = loss.ravel()
    count = min(64, _budget(problem), flat.size)
    cheap = np.argpartition(flat, count - 1)[:count] if count < flat.size else np.arange(count)
    cheap = cheap[np.argsort(flat[cheap], kind="stable")]
    cheap = cheap[np.isfinite(flat[cheap])]
    moves = _Moves(
        devices=cheap % problem.num_devices,
        lengths=options.ravel()[cheap],
        tokens=tokens.ravel()[cheap],
        utility=gain.ravel()[cheap],
        need_hz=(need - need[reach]).ravel()[cheap],
        fall=(fall - fall[reach]).ravel()[cheap],
    )
    return moves, float(need[reach].sum()), total_fall


@lru_cache(maxsize=64)
def _combinations(
    num_moves: int, budget: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Index sets of up to four moves [C, 4] among the cheapest, and which entries are not padding.

    Also which pairs of entries are two moves [C, 4, 4], and so must be of two devices. A short set
    repeats its last index; the more moves in a set, the fewer take part.
    """
    rows: list[tuple[int, ...]] = [(i,) * 4 for i in range(num_moves)]
    for size, among in (
        (2, int(budget**0.5)),
        (3, int((2 * budget) ** (1 / 3))),
        (4, int((4 * budget) ** 0.25)),
    ):
        for picked in itertools.combinations(range(min(among, num_moves)), size):
            rows.append(picked + (picked[-1],) * (4 - size))
    picks = np.asarray(rows, dtype=np.int64).reshape(-1, 4)
    is_new = np.ones(picks.shape, dtype=bool)
    is_new[:, 1:] = picks[:, 1:] != picks[:, :-1]
    is_pair = np.triu(np.ones((4, 4), dtype=bool), 1) & is_new[:, None, :]
    return picks, is_new, is_pair
