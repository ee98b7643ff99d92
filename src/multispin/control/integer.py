"""From real to whole draft lengths: rounding by price, then exact moves among marginal devices.

Rounding the continuous optimum is not optimal: one token is a big step for the shared bandwidth.
``improve`` tries every change of one, two, three and four devices that the prices call cheap and
accepts only what is better with the exact deadline of the new lengths.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from multispin.control.deadline import bandwidth_needed, least_deadline
from multispin.control.fairness import break_even_round_s, time_price, utility, worth
from multispin.control.problem import Floats, Lengths, Problem

_MAX_PASSES = 60
_LEAST_GAIN = 1e-7  # relative; a thousandth of what the solver promises


def round_by_price(
    problem: Problem, relaxed: Floats, deadline_s: Floats, bandwidth_price: Floats, price: float
) -> Lengths:
    """Whole lengths [P, K] that maximise u(L) - p t L - q b(L, phi) next to ``relaxed`` [P, K].

    Exact per device: the score is concave over L >= 1, so that the best integer is a neighbour of
    the best real number, or the minimum when the header makes drafting not worth its while.
    """
    down = np.floor(relaxed).astype(np.int64)
    up = np.minimum(down + 1, problem.max_draft_length)
    least = np.full_like(down, problem.min_draft_length)
    best, best_score = least, _score(problem, least, deadline_s, bandwidth_price, price)
    for other in (down, up):
        score = _score(problem, other, deadline_s, bandwidth_price, price)
        better = score > best_score
        best, best_score = np.where(better, other, best), np.where(better, score, best_score)
    return best


def _score(
    problem: Problem, lengths: Lengths, deadline_s: Floats, bandwidth_price: Floats, price: float
) -> Floats:
    """What each length is worth to its device at these prices [..., K]; -inf past the deadline."""
    hertz = bandwidth_needed(problem, lengths, deadline_s)
    charge = np.where(np.isinf(hertz), np.inf, bandwidth_price * np.where(hertz < np.inf, hertz, 0))
    tokens = price * problem.verify_per_token_s * lengths
    return np.asarray(utility(problem, lengths) - tokens - charge, dtype=np.float64)


def improve(problem: Problem, lengths: Lengths, best: float) -> tuple[Lengths, float]:
    """A local optimum under the moves of this module, from ``lengths`` [K] worth ``best``."""
    deadline = least_deadline(problem, lengths)
    # one move of thousands changes next to nothing and costs a look at all: work stays near n log n
    for _ in range(max(4, min(_MAX_PASSES, 4096 // problem.num_devices))):
        candidates = _neighbours(problem, lengths, deadline, best)
        if len(candidates) == 0:
            break
        deadlines = least_deadline(problem, candidates, near=deadline)
        values = worth(problem, candidates, deadlines)
        at = int(values.argmax())
        if values[at] <= best + _LEAST_GAIN * abs(best):
            break
        lengths, deadline, best = candidates[at], deadlines[at], float(values[at])
    return lengths, best


def _neighbours(problem: Problem, lengths: Lengths, deadline: Floats, best: float) -> Lengths:
    """Combinations of cheap moves that beat ``best`` [C, K], only the most promising.

    A candidate beats ``best`` iff its drafts fit into the bandwidth at the deadline at which it
    would break even: one evaluation of S(phi), no root.
    """
    devices, targets, gains = _cheapest_moves(problem, lengths, deadline, best)
    picks, is_new = _combinations(len(devices), _budget(problem))
    moved = devices[picks]  # [C, 4]
    distinct = np.ones(len(picks), dtype=bool)
    for i, j in itertools.combinations(range(4), 2):
        distinct &= (moved[:, i] != moved[:, j]) | ~is_new[:, j]
    picks, moved, is_new = picks[distinct], moved[distinct], is_new[distinct]
    candidates = np.repeat(lengths[None, :], len(picks), axis=0)
    candidates[np.arange(len(picks))[:, None], moved] = targets[picks]
    total = utility(problem, lengths).sum() + (gains[picks] * is_new).sum(axis=-1)
    latest = break_even_round_s(problem, total, best) - problem.overhead_s(candidates)
    need = bandwidth_needed(problem, candidates, latest[:, None]).sum(axis=-1)
    better = np.flatnonzero((need < problem.bandwidth_hz) & (latest >= 0))
    # some of these may break a minimum goodput, which only their exact deadline tells
    count = 64 if problem.objective.min_goodput_tokens_per_s > 0 else 16
    return np.asarray(candidates[better[np.argsort(need[better])[:count]]])


def _budget(problem: Problem) -> int:
    """About how many combinations to try: all that matter for few devices, less work for many."""
    return int(np.clip(2**13 // problem.num_devices, 16, 4096))


def _cheapest_moves(
    problem: Problem, lengths: Lengths, deadline: Floats, best: float
) -> tuple[npt.NDArray[np.int64], Lengths, Floats]:
    """Moves (device, new length, change of utility) in rising order of what they lose by price.

    The price of bandwidth is that of time over how fast S(phi) falls at the present deadline.
    """
    round_s = float(deadline + problem.overhead_s(lengths))
    price = time_price(problem, best, round_s)
    step = 1e-6 * (round_s if deadline == 0 else float(deadline))
    later = bandwidth_needed(problem, lengths, deadline[..., None] + step).sum()
    fall = max(problem.bandwidth_hz - float(later), 0.0) / step
    bandwidth_price = np.asarray([price / fall if fall > 0 else 0.0])

    reach = int(np.clip(64 // problem.num_devices, 2, 64))
    shifts = np.arange(-reach, reach + 1)[:, None]
    low, high = problem.min_draft_length, problem.max_draft_length
    # the last option drops to the minimum, which saves the header; the first ones, clipped at the
    # limits, must not repeat it or each other
    wanted = np.concatenate([lengths + shifts, np.full((1, problem.num_devices), low)])
    options = np.minimum(np.maximum(wanted, low), high)  # [O, K]
    is_move = (wanted == options) & (options != lengths)
    is_move[-1] &= lengths - reach > low
    score = _score(problem, options, np.asarray([deadline]), bandwidth_price, price)
    here = _score(problem, lengths, np.asarray([deadline]), bandwidth_price, price)
    loss = np.where(np.isfinite(score), here - score, 1e300)
    loss[~is_move] = np.inf
    flat = loss.ravel()
    count = min(64, _budget(problem), flat.size)
    cheap = np.argpartition(flat, count - 1)[:count] if count < flat.size else np.arange(count)
    cheap = cheap[np.argsort(flat[cheap], kind="stable")]
    cheap = cheap[np.isfinite(flat[cheap])]
    devices = cheap % problem.num_devices
    targets = options.ravel()[cheap]
    gains = (utility(problem, options) - utility(problem, lengths)).ravel()[cheap]
    return devices, targets, gains


@lru_cache(maxsize=64)
def _combinations(
    num_moves: int, budget: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Index sets of up to four moves [C, 4] among the cheapest, and which entries are not padding.

    A short set repeats its last index; the more moves in a set, the fewer take part.
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
    return picks, is_new
