"""Mode stop-and-wait: no barrier, every device on its own clock, the server verifies what is ready.

Device k's cycle, with A_k = L_k s_k + (Q_k L_k + H_k)/R_k(B_k) + round trip_k spent away from the
server (0 for L_k = 0, which the server generates alone, a token in every pass), and its rate:

    C_k = A_k + W_k,      g_k = E[N_k(L_k)] / C_k,      maximise sum_k g_k over sum_k B_k <= B

W_k, the wait for a pass and the pass itself, couples the devices: a fixed point (``pass_times``).
A pass takes T_0 + sum of c_j over the devices in it, c_j = per_device + per_token (L_j + 1), and
the next one starts as soon as it ends, with whatever is ready. Seen from device k, with p_j the
share of passes that j is in, and other devices taken as independent of each other:

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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multispin.control.fairness import Infeasible
from multispin.control.problem import Floats, Lengths, Problem, expected_tokens
from multispin.errors import BadInput

DO_NO_HARM = 0.97
"""Least goodput of a device, as a share of what server-only generation would give it."""

JITTER = 0.1  # relative deviation of the time away and of a pass, beyond what the model varies
_LONGEST_S = 1e6  # instead of infinity
_TINY = 1e-290


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


def pass_times(
    problem: Problem,
    lengths: Lengths,
    away_s: Floats,
    near: Floats | None = None,
    num_steps: int = 40,
) -> Floats:
    """W_k [..., K] for lengths and times away [..., K]: the fixed point of the module's equations.

    Damped iteration from ``near`` [..., K], or from everybody in one pass.
    """
    cost = problem.verify_per_device_s + problem.verify_per_token_s * (lengths + 1.0)
    fixed = problem.verify_fixed_s
    stays = away_s <= 0
    wait = fixed + cost.sum(axis=-1, keepdims=True) + 0.0 * cost if near is None else near
    mean_pass = wait.mean(axis=-1, keepdims=True)
    for _ in range(num_steps):
        cycle = away_s + wait
        share = np.where(stays, 1.0, np.minimum(mean_pass / cycle, 0.5))  # p_j
        log_absent = np.log(np.where(stays, _TINY, 1.0 - share))
        not_empty = np.maximum(1.0 - np.exp(_others(log_absent)), _TINY)  # e_k
        rows = share * cost
        without = np.where(_others(share) > 0, fixed + _others(rows) / not_empty, 0.0)  # P_k
        log_away = np.log(np.maximum(away_s / cycle, _TINY))
        is_busy = np.where(stays, 1.0, 1.0 - np.exp(np.minimum(_others(log_away), 0.0)))  # b_k
        came = np.where(stays, rows, rows / np.maximum(1.0 - share, 0.5))
        was_in = np.where(stays, 0.0, came * share)
        joined = np.maximum(_others(came) - _others(was_in) / not_empty, 0.0)
        joined = np.where(stays, _others(rows), joined)  # who stays sees every pass
        own = fixed + cost + is_busy * joined
        spread = np.sqrt(_others(rows * cost * (1.0 - share)))
        rest = _rest_of_pass(without, spread, away_s)
        target = np.where(stays, own, is_busy * rest + own)
        wait = 0.5 * (wait + target)
        absent = 1.0 - np.exp(log_absent.sum(axis=-1, keepdims=True))
        mean_pass = 0.5 * (mean_pass + fixed + rows.sum(axis=-1, keepdims=True) / absent)
    return np.asarray(wait, dtype=np.float64)


def _others(values: Floats) -> Floats:
    """sum over j != k [..., K] -> [..., K]; what is only rounding counts as 0."""
    total = values.sum(axis=-1, keepdims=True)
    rest = total - values
    return np.where(np.abs(rest) > 1e-12 * np.abs(total), rest, 0.0)


def _rest_of_pass(mean: Floats, spread: Floats, away_s: Floats) -> Floats:
    """P (1 + m(A)) - A: from the arrival, A after a pass began, to the end of the pass under way.

    Passes of mean P and the given deviation; m by the sum for A < 6 P, beyond by its limit
    A/P - 1/2 + v/2, v the squared coefficient of variation.
    """
    mean = np.maximum(mean, 1e-12)
    variation = (spread / mean) ** 2 + JITTER**2
    x = away_s / mean
    passed = np.zeros_like(x)
    for i in range(1, 9):
        deviation = np.sqrt(i * variation + (JITTER * x) ** 2)
        passed += 0.5 + 0.5 * np.tanh(0.8 * np.clip((x - i) / deviation, -40, 40))  # about Phi
    passed = np.where(x > 6.0, x - 0.5 + 0.5 * np.minimum(variation, 1.0), passed)
    return np.maximum(mean * (1.0 + passed - x), 0.0)


@dataclass(frozen=True, eq=False)
class _State:
    """C candidates, evaluated; all [C, K] but the score [C]."""

    lengths: Lengths
    hertz: Floats
    wait_s: Floats
    away_s: Floats
    rate: Floats
    score: Floats

    def row(self, index: int) -> _State:
        at = slice(index, index + 1)
        return _State(
            self.lengths[at],
            self.hertz[at],
            self.wait_s[at],
            self.away_s[at],
            self.rate[at],
            self.score[at],
        )


class _Cell:
    """A problem, its round trips, and what is owed to each device."""

    def __init__(self, problem: Problem, round_trip_s: Floats, least_share: float) -> None:
        self.problem = problem
        self.round_trip_s = round_trip_s
        self.least = max(
            least_share / problem.base_round_s, problem.objective.min_goodput_tokens_per_s
        )
        self.shortest = max(problem.min_draft_length, 1)

    def away_s(self, lengths: Lengths, hertz: Floats) -> Floats:
        """A_k [..., K]."""
        problem = self.problem
        bits = problem.draft_bits(lengths)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            upload = np.where(bits > 0, bits / problem.uplink.rate(hertz), 0.0)
        away = lengths * problem.draft_s_per_token + upload + self.round_trip_s
        return np.asarray(np.where(lengths > 0, np.minimum(away, _LONGEST_S), 0.0))

    def share_bandwidth(
        self, lengths: Lengths, wait_s: Floats, hertz: Floats, num_steps: int
    ) -> Floats:
        """Bandwidths [..., K] that maximise sum_k E_k/C_k for given waits: equal marginal values.

        V_k(b) = E_k/(A_k(b) + W_k) is concave in b. The step b <- b sqrt(V'(b)/price) contracts
        because the elasticity of V' lies between -2 and 0; the price is the one at which
        sum max(b, what the least goodput needs) = B.
        """
        problem = self.problem
        budget, bits = problem.bandwidth_hz, problem.draft_bits(lengths)
        expected = expected_tokens(problem.acceptance, lengths)
        proportional = problem.objective.kind == "proportional"
        owed = self._bandwidth_owed(lengths, wait_s)
        for _ in range(num_steps):
            step = 1e-4 * hertz
            rate = np.maximum(problem.uplink.rate(hertz), _TINY)
            slope = problem.uplink.rate(hertz + step) - problem.uplink.rate(hertz - step)
            cycle = self.away_s(lengths, hertz) + wait_s
            # b V'(b) / 1e-4, up to the factor 1/2
            value = np.maximum(bits * slope / rate, 0.0) / (rate * cycle)
            if not proportional:
                value = value * expected / cycle
            weight = np.where(bits > 0, np.sqrt(hertz * np.maximum(value, _TINY)), 0.0)
            is_free = bits > 0
            for _ in range(3 if self.least > 0 else 1):
                total = np.where(is_free, weight, 0.0).sum(axis=-1, keepdims=True)
                left = budget - np.where(is_free, 0.0, owed).sum(axis=-1, keepdims=True)
                hertz = weight * (np.maximum(left, 0.0) / np.maximum(total, _TINY))
                is_free = is_free & (hertz > owed)
            least = np.maximum(owed, 1e-12 * budget)
            hertz = np.where(bits > 0, np.maximum(hertz, least), 0.0)
            over = np.maximum(hertz.sum(axis=-1, keepdims=True) / budget, 1.0)
            hertz = hertz / over
        return np.asarray(hertz, dtype=np.float64)

    def _bandwidth_owed(self, lengths: Lengths, wait_s: Floats) -> Floats:
        """Bandwidths [..., K] at which g_k is the least goodput; 0 where B has not that much."""
        problem = self.problem
        bits = problem.draft_bits(lengths)
        if self.least == 0:
            return np.zeros_like(bits)
        cycle = expected_tokens(problem.acceptance, lengths) / (self.least * (1 + 1e-6))
        left = cycle - wait_s - lengths * problem.draft_s_per_token - self.round_trip_s
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            owed = problem.uplink.bandwidth(np.where(left > 0, bits / left, 0.0))
        owed = np.where((left > 0) & (owed < problem.bandwidth_hz), owed, 0.0)
        fits = owed.sum(axis=-1, keepdims=True) < problem.bandwidth_hz
        return np.asarray(np.where(fits, owed, 0.0), dtype=np.float64)

    def evaluate(self, lengths: Lengths, near: _State | None = None) -> _State:
        """The model at candidates [C, K]; from ``near``, one candidate [1, K], in fewer steps."""
        problem = self.problem
        drafts = problem.draft_bits(lengths) > 0
        hertz = np.where(drafts, problem.bandwidth_hz, 0.0)
        hertz = hertz / np.maximum(drafts.sum(axis=-1, keepdims=True), 1)
        cost = problem.verify_per_device_s + problem.verify_per_token_s * (lengths + 1.0)
        wait = problem.verify_fixed_s + cost.sum(axis=-1, keepdims=True) + 0.0 * cost
        rounds, steps, passes = 3, 10, 30
        if near is not None:
            rounds, steps, passes = 1, 3, 8
            hertz = np.where(drafts & (near.hertz > 0), near.hertz, hertz)
            wait = near.wait_s + 0.0 * cost
        for _ in range(rounds):
            hertz = self.share_bandwidth(lengths, wait, hertz, steps)
            away = self.away_s(lengths, hertz)
            wait = pass_times(problem, lengths, away, wait, passes)
        rate = expected_tokens(problem.acceptance, lengths) / (away + wait)
        return _State(lengths, hertz, wait, away, rate, self._score(rate))

    def _score(self, rate: Floats) -> Floats:
        """The objective [C]; if goodput is owed, below every objective, less so if little is."""
        missing = np.maximum(1.0 - rate / (self.least * (1 - 1e-9) + _TINY), 0.0).sum(axis=-1)
        if self.problem.objective.kind == "proportional":
            value = np.log(np.maximum(rate, _TINY)).sum(axis=-1)
        else:
            value = rate.sum(axis=-1)
        return np.asarray(np.where(missing > 0, -1e9 * (1.0 + missing), value), dtype=np.float64)

    def options(self, wanted: Lengths) -> Lengths:
        """The nearest legal lengths: 0, or the shortest draft up to the longest."""
        legal = np.clip(wanted, self.shortest, self.problem.max_draft_length)
        off = (wanted <= 0) | (self.problem.max_draft_length == 0)
        return np.asarray(np.where(off, 0, legal), dtype=np.int64)


def solve_stop_and_wait(
    problem: Problem,
    round_trip_s: npt.ArrayLike | None = None,
    *,
    least_share: float = DO_NO_HARM,
    near: Lengths | None = None,
) -> StopAndWaitPlan:
    """Lengths and bandwidths that maximise the objective over the devices' own rates g_k.

    ``round_trip_s`` [K], default the problem's for every device. Every g_k stays at or above
    ``least_share`` of server-only generation, 1/(T_0 + sum of c_j(0)), and the objective's minimum;
    where no drafts keep that, all lengths are 0. ``near`` [K], a plan in force, replaces most
    starts: cheaper. ``min_draft_length`` bounds drafts that are not empty. Raises Infeasible
    if no plan that keeps the objective's minimum is found.
    """
    cell = _cell(problem, round_trip_s, least_share)
    starts = _starts(cell) if near is None else np.stack([np.zeros_like(near), near])
    state = cell.evaluate(np.unique(cell.options(starts), axis=0))
    order = np.argsort(-state.score, kind="stable")
    num = 1 if near is not None else int(np.clip(64 // problem.num_devices, 1, 4))
    best: _State | None = None
    for at in order[:num]:
        found = _ascend(cell, state.row(int(at)))
        if best is None or found.score[0] > best.score[0]:
            best = found
    assert best is not None
    plan = _plan(cell, best)
    least = problem.objective.min_goodput_tokens_per_s
    if least > 0 and plan.device_tokens_per_s.min() < least * (1 - 1e-6):
        raise Infeasible(
            "objective.min_goodput_tokens_per_s",
            f"{least:g}",
            f"no stop-and-wait plan found: at most {plan.device_tokens_per_s.min():.4g} tokens/s "
            "for every device at once; lower the minimum or raise the bandwidth",
        )
    return plan


def evaluate_stop_and_wait(
    problem: Problem,
    lengths: Lengths,
    round_trip_s: npt.ArrayLike | None = None,
    *,
    least_share: float = DO_NO_HARM,
) -> StopAndWaitPlan:
    """The model at these lengths [K], with the bandwidths that it gives them."""
    cell = _cell(problem, round_trip_s, least_share)
    return _plan(cell, cell.evaluate(np.asarray(lengths, dtype=np.int64)[None, :]))


def _cell(problem: Problem, round_trip_s: npt.ArrayLike | None, least_share: float) -> _Cell:
    if not 0 <= least_share <= 1:
        raise BadInput("least_share", least_share, "must lie in [0, 1]")
    given = problem.round_trip_s if round_trip_s is None else round_trip_s
    trips = np.asarray(given, dtype=np.float64)
    if trips.shape not in ((), (problem.num_devices,)):
        raise BadInput("round_trip_s", trips.shape, f"must hold {problem.num_devices} numbers")
    if not (np.isfinite(trips) & (trips >= 0)).all():
        raise BadInput("round_trip_s", float(trips.min()), "must be finite numbers, 0 or more")
    return _Cell(problem, np.broadcast_to(trips, (problem.num_devices,)), least_share)


def _plan(cell: _Cell, state: _State) -> StopAndWaitPlan:
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


def _starts(cell: _Cell) -> Lengths:
    """Common lengths, and each device's own best at a few prices of server time [S, K].

    At price mu (tokens per second of server), with waits of one and a half passes of length P, the
    device takes the length with the largest (E[N] - mu c)/C.
    """
    problem = cell.problem
    num, longest = problem.num_devices, problem.max_draft_length
    zeros = np.zeros(num, dtype=np.int64)
    common = [zeros + length for length in (0, 1, 2, 3, 4, 6, 8, 12, 18, 25) if length <= longest]
    base_s = problem.base_round_s
    lengths = cell.options(np.arange(longest + 1)[:, None] + zeros)  # [O, K]
    cost = problem.verify_per_device_s + problem.verify_per_token_s * (lengths + 1.0)
    expected = expected_tokens(problem.acceptance, lengths)
    own = []
    for sharers in sorted({1, max(num // 3, 1), num}):
        hertz = np.where(lengths > 0, problem.bandwidth_hz / sharers, 0.0)
        away = cell.away_s(lengths, hertz)
        for pass_s in (0.5 * base_s, base_s, 2.0 * base_s):
            cycle = np.where(lengths > 0, away + 1.5 * pass_s, pass_s)
            for price in (0.0, 0.5, 1.0, 2.0):
                worth = (expected - price * num / base_s * cost) / cycle
                own.append(lengths[worth.argmax(axis=0), np.arange(num)])
    return np.stack(common + own)


_MAX_PASSES = 40
_MOST_SWAPPED = 12  # devices, up to which two exchange their lengths
_MAX_ELEMENTS = 16_384  # of one screening, candidates times devices


def _ascend(cell: _Cell, state: _State) -> _State:
    """Coordinate ascent from one candidate [1, K].

    Moves of single devices are screened together from the incumbent's fixed point; the best few,
    and all that improve at once, are evaluated in full; only what is better in full is accepted.
    In large cells each screening takes the next slice of the devices, and a full turn without
    success ends the ascent.
    """
    num = cell.problem.num_devices
    shifts = np.array([1, -1, 2, -2, 4, -4, -10_000, 10_000])
    if num <= 4:
        shifts = np.arange(-cell.problem.max_draft_length, cell.problem.max_draft_length + 1)
    width = int(np.clip(_MAX_ELEMENTS // (num * len(shifts)), 1, num))
    first, idle = 0, 0
    for _ in range(_MAX_PASSES):
        devices = (first + np.arange(width)) % num
        moves = _single_moves(cell, state.lengths[0], devices, shifts)
        better = _best_move(cell, state, moves)
        first = (first + width) % num
        if better is None:
            idle += width
            if idle >= num:
                break
        else:
            state, idle = better, 0
    return state


def _single_moves(
    cell: _Cell, lengths: Lengths, devices: npt.NDArray[np.int64], shifts: Lengths
) -> Lengths:
    """``lengths`` with one device changed [C, K], all shifted by one, or two exchanged."""
    moved = np.repeat(devices, len(shifts))
    rows = np.repeat(lengths[None, :], len(moved), axis=0)
    at = np.arange(len(moved))
    rows[at, moved] += np.tile(shifts, len(devices))
    every = np.stack([lengths + 1, lengths - 1, np.where(lengths > 0, lengths + 1, 0)])
    if len(lengths) <= _MOST_SWAPPED:
        one, other = np.triu_indices(len(lengths), 1)
        swaps = np.repeat(lengths[None, :], len(one), axis=0)
        at = np.arange(len(one))
        swaps[at, one], swaps[at, other] = lengths[other], lengths[one]
        every = np.concatenate([every, swaps])
    legal = cell.options(np.concatenate([rows, every]))
    legal = legal[(legal != lengths).any(axis=-1)]
    return np.asarray(np.unique(legal, axis=0), dtype=np.int64)


def _best_move(cell: _Cell, state: _State, moves: Lengths) -> _State | None:
    """The best of the moves and of their combinations, if better than ``state`` in full."""
    if len(moves) == 0:
        return None
    lengths, here = state.lengths[0], state.score[0]
    screened = cell.evaluate(moves, near=state)
    base = cell.evaluate(state.lengths, near=state).score[0]
    order = np.argsort(-screened.score, kind="stable")
    picked = [moves[i] for i in order[:4]]
    joint = lengths.copy()
    taken = 0
    for i in order[: 2 * len(lengths)]:
        if screened.score[i] <= base:
            break
        changed = moves[i] != lengths
        if (joint[changed] == lengths[changed]).all():
            joint[changed] = moves[i][changed]
            taken += 1
            if taken & (taken - 1) == 0:  # the best 1, 2, 4, 8, ... moves together
                picked.append(joint.copy())
    picked.append(joint)
    full = cell.evaluate(np.unique(np.stack(picked), axis=0))
    at = int(full.score.argmax())
    return full.row(at) if full.score[at] > here + 1e-9 * abs(here) else None
