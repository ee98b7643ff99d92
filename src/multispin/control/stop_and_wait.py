"""Mode stop-and-wait: no barrier, every device on its own clock, the server verifies what is ready.

Maximise sum_k g_k, device k's rate g_k = E[N_k(L_k)]/C_k of its own cycle (``cycles``), over whole
L_k and sum_k B_k <= B. The server's time is the other shared resource; it needs no constraint of
its own, because waits grow until it is no more than busy.

The plan is found by prices. At mu tokens per second of server time and lambda per hertz each device
takes on its own the length with the largest (E[N] - mu c)/C - lambda b, which at its best b is

    (sqrt(E[N] - mu c) - sqrt(lambda q))^2 / D

q the hertz-seconds of its upload, D the cycle without it, c its part of a pass. lambda clears the
band. mu has to be searched, because what a second of the server is worth depends on who waits: some
values are tried together, then finer ones around the best, and at the end groups of devices move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multispin.control.cycles import LONGEST_S, SLACK, TINY, Cell, State
from multispin.control.fairness import Infeasible
from multispin.control.passes import verification_s
from multispin.control.problem import Floats, Lengths, Problem, expected_tokens
from multispin.errors import BadInput

DO_NO_HARM = 0.97
"""Least goodput of a device, as a share of what server-only generation would give it."""


@dataclass(frozen=True, eq=False)
class StopAndWaitPlan:
    """Lengths and bandwidths, and what the model expects of them."""

    lengths: Lengths  # [K] tokens
    bandwidths_hz: Floats  # [K]
    goodput_tokens_per_s: float
    device_tokens_per_s: Floats  # [K] g_k
    expected_tokens: Floats  # [K] E[N_k]
    away_s: Floats  # [K] A_k: drafting, upload, round trip
    wait_s: Floats  # [K] W_k: wait for a pass, and the pass
    is_kept: bool  # every device has its least goodput

    @property
    def cycle_s(self) -> Floats:
        """C_k [K]."""
        return self.away_s + self.wait_s


def solve_stop_and_wait(
    problem: Problem,
    round_trip_s: npt.ArrayLike | None = None,
    *,
    least_share: float | Floats = DO_NO_HARM,
    near: Lengths | None = None,
) -> StopAndWaitPlan:
    """Lengths and bandwidths that maximise the objective over the devices' own rates g_k.

    ``round_trip_s`` [K], default the problem's for every device. Every g_k stays at or above
    ``least_share`` (one for all, or [K]) of server-only generation, 1/(T_0 + sum of c_j(0)), and
    the objective's minimum; where no drafts keep that, all lengths are 0. ``near`` is a plan in
    force, to start from.
    ``min_draft_length`` bounds drafts that are not empty. Raises Infeasible if no plan that keeps
    the objective's minimum is found.
    """
    *_, plan = stop_and_wait_plans(problem, round_trip_s, least_share=least_share, near=near)
    least = problem.objective.min_goodput_tokens_per_s
    if least > 0 and plan.device_tokens_per_s.min() < least * (1 - 2 * SLACK):
        raise Infeasible(
            "objective.min_goodput_tokens_per_s",
            f"{least:g}",
            f"no stop-and-wait plan found: at most {plan.device_tokens_per_s.min():.4g} tokens/s "
            "for every device at once; lower the minimum or raise the bandwidth",
        )
    return plan


def stop_and_wait_plans(
    problem: Problem,
    round_trip_s: npt.ArrayLike | None = None,
    *,
    least_share: float | Floats = DO_NO_HARM,
    near: Lengths | None = None,
) -> Iterator[StopAndWaitPlan]:
    """The best plan so far, again and again: a server may do something else in between."""
    cell = _cell(problem, round_trip_s, least_share)
    for state in _ascend(cell, near):
        yield _plan(cell, state)


def evaluate_stop_and_wait(
    problem: Problem,
    lengths: Lengths,
    round_trip_s: npt.ArrayLike | None = None,
    *,
    least_share: float | Floats = DO_NO_HARM,
) -> StopAndWaitPlan:
    """The model at these lengths [K], with the bandwidths that it gives them."""
    cell = _cell(problem, round_trip_s, least_share)
    return _plan(cell, cell.evaluate(np.asarray(lengths, dtype=np.int64)[None, :]))


def _cell(
    problem: Problem, round_trip_s: npt.ArrayLike | None, least_share: float | Floats
) -> Cell:
    if not (np.min(least_share) >= 0 and np.max(least_share) <= 1):
        raise BadInput("least_share", least_share, "must lie in [0, 1]")
    given = problem.round_trip_s if round_trip_s is None else round_trip_s
    trips = np.asarray(given, dtype=np.float64)
    if trips.shape not in ((), (problem.num_devices,)):
        raise BadInput("round_trip_s", trips.shape, f"must hold {problem.num_devices} numbers")
    if not (np.isfinite(trips) & (trips >= 0)).all():
        raise BadInput("round_trip_s", float(trips.min()), "must be finite numbers, 0 or more")
    return Cell(problem, np.broadcast_to(trips, (problem.num_devices,)), least_share)


def _plan(cell: Cell, state: State) -> StopAndWaitPlan:
    return StopAndWaitPlan(
        lengths=state.lengths[0],
        bandwidths_hz=state.hertz[0],
        goodput_tokens_per_s=float(state.rate[0].sum()),
        device_tokens_per_s=state.rate[0],
        expected_tokens=expected_tokens(cell.problem.acceptance, state.lengths[0]),
        away_s=state.away_s[0],
        wait_s=state.wait_s[0],
        is_kept=bool(state.score[0] > -1e9),
    )


# --- search -------------------------------------------------------------------------------------

_COMMON_LENGTHS = np.array([0, 1, 2, 4, 8, 16, 1_000_000])  # the last: the longest
_PRICES = np.array([0.0, 0.2, 0.4, 0.7, 1.0, 1.6, 3.0, 7.0])
_SHIFTS = np.array([-1_000_000, -8, -4, -2, -1, 1, 2, 4, 8, 1_000_000])
_MAX_ELEMENTS = 4000  # candidates times devices, of one round of moves
_MAX_MOVES = 4
_LEAST_GAIN = 2e-3  # of a round of moves, for another one


def _ascend(cell: Cell, near: Lengths | None) -> Iterator[State]:
    """The best candidate so far [1, K], after each step of the search."""
    starts = cell.options(_COMMON_LENGTHS[:, None] + np.zeros(cell.problem.num_devices, np.int64))
    if near is not None:
        starts = np.concatenate([starts, cell.options(near)[None, :]])
    best = _best(cell.evaluate(starts, num_rounds=2, num_steps=6))
    yield best
    prices = _PRICES
    for _ in range(2):
        state = best.repeat(len(prices))
        weight = np.ones_like(state.rate)
        for _ in range(2):
            weight = _weights(cell, state, weight)
            state = cell.step(_at_prices(cell, state, prices[:, None], weight), state)
            yield best
        state = cell.step(state.lengths, state)
        best = max(best, _best(state), key=_score)
        at = int(state.score.argmax())
        prices = np.linspace(prices[max(at - 1, 0)], prices[min(at + 1, len(prices) - 1)], 8)
        yield best
    for _ in range(_MAX_MOVES):
        before, moves = _score(best), _group_moves(cell, best)
        if len(moves):
            best = max(best, _best_together(cell, best, moves), key=_score)
        yield best
        if _score(best) <= before + _LEAST_GAIN * abs(before):
            break
    last = [best.lengths, starts[:1]] if near is None else [best.lengths, starts[:1], starts[-1:]]
    last_lengths = np.concatenate(last)
    near_best = best.repeat(len(last_lengths))
    yield _best(cell.evaluate(last_lengths, near_best, num_rounds=3, num_steps=8))


def _best(state: State) -> State:
    return state.take([int(state.score.argmax())])


def _score(state: State) -> float:
    return float(state.score[0])


def _group_moves(cell: Cell, state: State) -> Lengths:
    """The lengths of ``state`` [1, K] with one group of devices, or all, shifted [C, K].

    Small cells have groups of one; in large ones those of similar length and rate move together.
    """
    lengths, num = state.lengths[0], cell.problem.num_devices
    order = np.lexsort((state.rate[0], lengths))
    num_groups = int(np.clip(_MAX_ELEMENTS // (len(_SHIFTS) * num), 1, num))
    group = np.empty(num, dtype=np.int64)
    group[order] = np.arange(num) * num_groups // num
    is_moved = group == np.arange(num_groups)[:, None]  # [G, K]
    one = lengths + (_SHIFTS[:, None, None] * is_moved).reshape(-1, num)
    every = np.stack([lengths - 1, lengths + 1, np.where(lengths > 0, lengths + 1, 0)])
    moves = cell.options(np.concatenate([one, every]))
    return np.asarray(moves[(moves != lengths).any(axis=-1)], dtype=np.int64)


def _best_together(cell: Cell, state: State, moves: Lengths) -> State:
    """The best of the moves [C, K], and of the best 1, 2, 4, 8, ... of them at once."""
    screened = cell.step(moves, state.repeat(len(moves)))
    order = np.argsort(-screened.score, kind="stable")
    order = order[screened.score[order] > state.score[0]]
    joint, picked = state.lengths[0].copy(), [state.lengths[0], *moves[order[:4]]]
    num_joined = 0
    for move in moves[order]:
        changed = move != state.lengths[0]
        if (joint[changed] == state.lengths[0][changed]).all():
            joint[changed] = move[changed]
            num_joined += 1
            if num_joined & (num_joined - 1) == 0:
                picked.append(joint.copy())
    found = cell.step(np.stack([*picked, joint]), state.repeat(len(picked) + 1))
    return _best(cell.step(found.lengths, found))


# --- propose ------------------------------------------------------------------------------------


def _weights(cell: Cell, state: State, before: Floats) -> Floats:
    """What a token of each device counts [C, K]: more while it has less than it is owed."""
    if np.max(cell.least) == 0:
        return before
    return np.maximum(before * np.clip(cell.least / state.rate, 0.7, 3.0), 1.0)


def _at_prices(cell: Cell, state: State, price: Floats, weight: Floats) -> Lengths:
    """Each device's own best lengths [C, K] at the waits of ``state`` [C, K].

    ``price`` [C, 1]: mu, as a share of the goodput of ``state``; ``weight`` [C, K]: what a
    token of a device counts. In square roots and with y = 1/sqrt(lambda) the best worth is
    s - u/y with s = sqrt((w E - mu c)/D), u = sqrt(q/D), and takes the bandwidth u (y s - u).
    """
    problem, budget = cell.problem, cell.problem.bandwidth_hz
    options = _spread_options(cell)  # [O, K]
    cost, bits = verification_s(problem, options), problem.draft_bits(options)
    if problem.objective.kind == "proportional":  # d log g = dg / g
        weight = weight / np.maximum(state.rate, TINY)
    per_token = price * (weight * state.rate).sum(axis=-1, keepdims=True)  # mu [C, 1]
    tokens = weight[:, None, :] * expected_tokens(problem.acceptance, options)
    value = np.maximum(tokens - per_token[:, None, :] * cost, 0.0)  # [C, O, K]
    hertz = np.where(state.hertz > 0, state.hertz, budget / problem.num_devices)
    need = bits * (hertz / np.maximum(problem.uplink.rate(hertz), TINY))[:, None, :]  # q
    cycle = _cycle_without_upload(cell, state, options, need / hertz[:, None, :], cost)
    root, toll = np.sqrt(value / cycle), np.sqrt(need / cycle)
    chosen = _cleared(root, toll, state.plenty, budget)
    return np.asarray(options[chosen, np.arange(problem.num_devices)], dtype=np.int64)


def _cycle_without_upload(
    cell: Cell, state: State, options: Lengths, upload_s: Floats, cost: Floats
) -> Floats:
    """D [C, O, K], the cycle without its upload, should k alone choose another length.

    The rest of the pass under way is about max(P - A, P/2), A with the present upload.
    """
    before = state.before_s[:, None, :]
    away = options * cell.problem.draft_s_per_token + cell.round_trip_s
    rest = np.maximum(before - away - upload_s, 0.5 * before)
    others = (state.is_busy * state.joined_s)[:, None, :]
    cycle = away + state.is_busy[:, None, :] * rest + cell.problem.verify_fixed_s + cost + others
    cycle[:, 0] = cell.problem.verify_fixed_s + cost[0] + state.others_s
    return np.asarray(np.minimum(cycle, LONGEST_S), dtype=np.float64)


def _spread_options(cell: Cell) -> Lengths:
    """Lengths 0 to 6, and beyond a few more that grow by equal factors [O, K]."""
    far = np.geomspace(6, max(cell.problem.max_draft_length, 6), 8).round().astype(np.int64)
    every = np.unique(cell.options(np.concatenate([np.arange(7), far])))
    return every[:, None] + np.zeros(cell.problem.num_devices, dtype=np.int64)


def _cleared(root: Floats, toll: Floats, plenty: Floats, budget: float) -> npt.NDArray[np.int64]:
    """Best options [C, K] at the price of bandwidth at which their needs sum to the budget.

    Worth root - toll/y of options [C, O, K]. Needs rise with y: proportional steps from ``plenty``
    [C, 1] (a rough guess where nobody drafted), bisection where they leave the bracket.
    """
    rough = budget / np.maximum((root * toll).mean(axis=1).sum(axis=-1), TINY)[:, None]
    y = np.where(plenty < 1e100, plenty, np.minimum(rough, 1e100))[:, None, :]
    low, high = np.zeros_like(y), np.full_like(y, np.inf)
    for _ in range(4):
        at = (root - toll / y).argmax(axis=1, keepdims=True)
        u, s = np.take_along_axis(toll, at, 1), np.take_along_axis(root, at, 1)
        need = (u * (y * s - u)).sum(axis=-1, keepdims=True)
        low, high = np.where(need > budget, low, y), np.where(need > budget, y, high)
        with np.errstate(invalid="ignore"):
            middle = np.where(low > 0, np.sqrt(low * high), high / 8)
        middle = np.where(np.isfinite(middle), middle, 8 * low)
        ahead = y * budget / np.maximum(need, 1e-3 * budget)
        y = np.clip(np.where((ahead > low) & (ahead < high), ahead, middle), 1e-100, 1e100)
    y = np.where(low > 0, low, y)
    return np.asarray((root - toll / y).argmax(axis=1), dtype=np.int64)
