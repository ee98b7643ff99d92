"""Mode window: no barrier and no waiting; how far each device may draft ahead, and at what rate.

The server runs pass after pass of P seconds with what has arrived; a session without a draft gets
its one token in the same pass, and what was drafted in its place comes too late. A token arrives
d_k = s_k + (H_k + Q_k)/R_k + round trip_k after the verdict that let it be drafted, and is answered
a pass or more later, l_k = P + max(P, d_k + P/2) in all. So of a window of w tokens, while drafts
hold, there come in each pass

    c_k(w) = min((w + 1) P/l_k, P/s_k)

of which the server would have written one alone: n_k = max(c_k - 1, 0) rows, F_k = sum_{j < n} S_kj
of them accepted, S_kj the survival of position j. After a rejection, of which a pass has the
chance 1 - S_kn, the device has to catch up with a server that writes on, one token in P against one
in s_k: e_k = 1/2 + d_k/(P - s_k) passes (never, where s_k >= P). The new draft survives them with
S_ke, so it takes 1/S_ke attempts, and drafts are there in the share f_k of the passes:

    f_k = 1/(1 + (1 - S_kn) e_k/S_ke),     g_k = (1 + f_k F_k)/P
    P = T_0 + sum_k (T_K + t + t f_k n_k)
    bits_k = Q_k c_k + H_k min(1, 2 c_k/w)     per pass: one frame, or less, of half a window

Bits are sent whether they become stale or not. Maximise sum_k g_k over whole windows with
sum_k bits_k/(P r_k) <= B. Multiplied by P this is, for the goodput theta that comes out of it, one
choice per device (Dinkelbach 1967):

    max over w of   f_k (F_k - theta t n_k) - lambda bits_k/r_k

Where drafts hold, a position is worth sending as long as S_kj >= theta t + lambda Q_k/r_k. lambda
clears the band, by bisection, since bits fall as it rises; theta likewise is the least at which it
is not below the goodput and no device is harmed: the dearer the server, the shorter its passes.
Where no theta is harmless, what does harm is cut down in proportion. Approximate: drafts arrive
evenly, passes are equal, R_k and r_k are those of the shares in the solution for the theta before,
at first of equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from multispin.control.problem import Floats, Lengths, Problem
from multispin.control.stop_and_wait import DO_NO_HARM
from multispin.errors import BadInput

_BISECTIONS = 12  # of theta
_SPARE = 1.02  # of the band, that a plan may ask for: it was made with the shares before
_CUTS = 6  # of windows that do harm
_LEAST_GAIN = 0.01  # tokens a pass, for which a device is bothered at all
_FILLS = 4  # windows that are raised where the price of bandwidth jumps


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Windows and bandwidths, and what the model expects of them."""

    lengths: Lengths  # [K] most tokens in flight
    bandwidths_hz: Floats  # [K]; 0 for a window of 0
    goodput_tokens_per_s: float
    device_tokens_per_s: Floats  # [K] g_k
    pass_s: float
    fits: bool  # into the band, but for rounding


@dataclass(frozen=True, eq=False)
class _Table:
    """Every window 0 .. W of every device at a given pass [W+1, K], per pass."""

    accepted: Floats  # f F
    rows: Floats  # f n, with n = max(c - 1, 0)
    hertz_s: Floats  # bits / r


class WindowCell:
    """A problem whose devices have their own survival [K, W] and round trips [K]."""

    def __init__(self, problem: Problem, survival: Floats, round_trip_s: Floats) -> None:
        if survival.shape != (problem.num_devices, problem.max_draft_length):
            raise BadInput("survival", survival.shape, "must hold every position of every device")
        self.problem = problem
        self.round_trip_s = round_trip_s
        first = np.ones((1, problem.num_devices))
        self._survival = np.concatenate([first, survival.T])  # S_-1 = 1, S_0, ...
        self._sums = np.concatenate([0.0 * first, np.cumsum(survival.T, axis=0)])  # F(0), F(1) ...
        self.share_out(np.zeros(problem.num_devices))

    def share_out(self, bandwidths_hz: Floats) -> None:
        """Uploads take as long as in these bandwidths [K]; an equal share for who has none."""
        problem = self.problem
        equal = problem.bandwidth_hz / problem.num_devices
        share = np.where(bandwidths_hz > 0, bandwidths_hz, equal)
        rate = problem.uplink.rate(share)
        self._hertz_s_per_bit = share / rate
        token_bits = problem.bits_per_draft + problem.bits_per_token
        self._first_s = problem.draft_s_per_token + self.round_trip_s + token_bits / rate  # d_k

    def table(self, pass_s: float) -> _Table:
        problem = self.problem
        draft_s = problem.draft_s_per_token
        windows = np.arange(problem.max_draft_length + 1.0)[:, None]
        answered_s = pass_s + np.maximum(pass_s, self._first_s + 0.5 * pass_s)
        with np.errstate(divide="ignore"):
            come = np.minimum((windows + 1.0) * (pass_s / answered_s), pass_s / draft_s)
            without = 0.5 + self._first_s / np.maximum(pass_s - draft_s, 0.0)
        come = np.where(windows > 0, np.minimum(come, windows), 0.0)
        num = np.maximum(come - 1.0, 0.0)
        accepted, holds = self._up_to(num)
        catches_up = np.isfinite(without)
        without = np.where(catches_up, without, 0.0)
        _, survives = self._up_to(without[None, :])
        drafts = 1.0 / (1.0 + (1.0 - holds) * without / np.maximum(survives, 1e-9))
        drafts = np.where(catches_up, drafts, 0.0)
        frames = np.minimum(2.0 * come / np.maximum(windows, 2.0), 1.0)
        bits = problem.bits_per_token * come + problem.bits_per_draft * frames
        return _Table(drafts * accepted, drafts * num, bits * self._hertz_s_per_bit)

    def _up_to(self, num: Floats) -> tuple[Floats, Floats]:
        """F(n) and the chance that n tokens hold, for n [..., K], between whole n in a line."""
        longest = self.problem.max_draft_length
        below = np.minimum(num.astype(np.int64), max(longest - 1, 0))
        every = np.arange(self.problem.num_devices)
        at, after = (below, every), (np.minimum(below + 1, longest), every)
        part = np.minimum(num - below, 1.0)
        accepted = self._sums[at] + part * (self._sums[after] - self._sums[at])
        return accepted, self._survival[at] + part * (self._survival[after] - self._survival[at])

    def value(self, table: _Table, theta: float, least_accepted: float | Floats) -> Floats:
        """What windows are worth without their bits [W+1, K]; -inf: the device would be harmed."""
        value = table.accepted - theta * self.problem.verify_per_token_s * table.rows
        value[1:] -= _LEAST_GAIN
        is_enough = table.accepted >= least_accepted
        is_enough |= ~is_enough.any(axis=0)  # else nothing helps: the plan will not be taken
        return np.where(is_enough, value, -np.inf)

    def clear(self, value: Floats, hertz_s: Floats, pass_s: float) -> Lengths:
        """The best windows at the least price (within 0.1 %) at which their needs fit the band."""
        budget = self.problem.bandwidth_hz * pass_s
        every = np.arange(self.problem.num_devices)
        lengths = np.asarray(value.argmax(axis=0), dtype=np.int64)
        if hertz_s[lengths, every].sum() <= budget:
            return lengths
        low, high = 0.0, 1.01 * float((value / np.maximum(hertz_s, 1e-290))[1:].max())
        lengths = (value - high * hertz_s).argmax(axis=0)  # nothing pays, but what is owed stays
        while high - low > 1e-3 * high:
            price = 0.5 * (low + high) if low > 0 else high / 8
            found = (value - price * hertz_s).argmax(axis=0)
            if hertz_s[found, every].sum() <= budget:
                high, lengths = price, found
            else:
                low = price
            if high < 1e-9:
                break
        return self._filled(lengths, value, hertz_s, budget)

    def _filled(self, lengths: Lengths, value: Floats, hertz_s: Floats, budget: float) -> Lengths:
        """What is left of the band goes to single windows that fit: the one that gains most."""
        every = np.arange(self.problem.num_devices)
        for _ in range(_FILLS):
            spare = budget - hertz_s[lengths, every].sum()
            gain = value - value[lengths, every]
            gain[hertz_s - hertz_s[lengths, every] > spare] = 0.0
            window, device = np.unravel_index(int(gain.argmax()), gain.shape)
            if not gain[window, device] > 0:
                break
            lengths[device] = window
        return lengths

    def at_price(self, theta: float, pass_s: float, least: float | Floats) -> WindowPlan:
        """The plan at theta; ``pass_s``: what the pass is taken for, the plan has what it is."""
        table = self.table(pass_s)
        value = self.value(table, theta, least * pass_s - 1.0)
        lengths = self.clear(value, table.hertz_s, pass_s)
        needs = table.hertz_s[lengths, np.arange(self.problem.num_devices)]
        fits = needs.sum() <= self.problem.bandwidth_hz * pass_s
        return self.plan(table, lengths if fits else 0 * lengths)

    def plan(self, table: _Table, lengths: Lengths) -> WindowPlan:
        problem, at = self.problem, (lengths, np.arange(self.problem.num_devices))
        pass_s = problem.base_round_s + problem.verify_per_token_s * float(table.rows[at].sum())
        rates = (1.0 + table.accepted[at]) / pass_s
        needs = table.hertz_s[at]
        spread = problem.bandwidth_hz / max(float(needs.sum()), 1e-290)
        fits = spread >= 1.0 / (_SPARE * pass_s)
        return WindowPlan(lengths, needs * spread, float(rates.sum()), rates, pass_s, bool(fits))

    def settled(self, plan: WindowPlan) -> WindowPlan:
        """The same windows in the bandwidths and the pass that they lead to."""
        self.share_out(plan.bandwidths_hz)
        return self.plan(self.table(plan.pass_s), plan.lengths)


def solve_window(
    problem: Problem,
    survival: Floats,
    round_trip_s: Floats,
    *,
    least_share: float | Floats = DO_NO_HARM,
) -> WindowPlan:
    """Windows, and bandwidths that use up the band; ``survival`` [K, max_draft_length] falls.

    Every device keeps ``least_share``, one for all or [K], of server-only generation.
    """
    *_, plan = window_plans(problem, survival, round_trip_s, least_share=least_share)
    return plan


def window_plans(
    problem: Problem,
    survival: Floats,
    round_trip_s: Floats,
    *,
    least_share: float | Floats = DO_NO_HARM,
) -> Iterator[WindowPlan]:
    """The best plan so far, again and again: a server may do something else in between."""
    cell = WindowCell(problem, survival, round_trip_s)
    base_s = problem.base_round_s
    least = least_share / base_s
    low = problem.num_devices / base_s  # the goodput of the server alone
    best = cell.plan(cell.table(base_s), np.zeros(problem.num_devices, dtype=np.int64))
    high = max(1.0 / max(problem.verify_per_token_s, 1e-290), low)  # no token is worth its row
    pass_s, harmful = base_s, best
    for _ in range(_BISECTIONS):
        theta = float(np.sqrt(low * high))
        plan = cell.settled(cell.at_price(theta, pass_s, least))
        pass_s = 0.5 * (pass_s + plan.pass_s)
        is_harmless = (plan.device_tokens_per_s >= least * (1 - 1e-9)).all()
        if is_harmless and plan.fits and plan.goodput_tokens_per_s > best.goodput_tokens_per_s:
            best = plan
        if is_harmless and plan.goodput_tokens_per_s <= theta:
            high = theta
        else:
            low = theta
        harmful = harmful if is_harmless else plan
        yield best
    # Where survival hardly falls every theta asks for the longest windows or for none. Shorter ones
    # may need a little more than the band: frames then wait for each other, and are fewer.
    least_cut, most_cut = 0.0, 1.0
    for _ in range(_CUTS if harmful.lengths.any() else 0):
        cut = 0.5 * (least_cut + most_cut)
        plan = cell.settled(cell.plan(cell.table(base_s), (cut * harmful.lengths).astype(np.int64)))
        if (plan.device_tokens_per_s < least * (1 - 1e-9)).any():
            most_cut = cut
            continue
        least_cut = cut
        if plan.goodput_tokens_per_s > best.goodput_tokens_per_s:
            best = plan
    yield best


def evaluate_window(
    problem: Problem, survival: Floats, round_trip_s: Floats, lengths: Lengths
) -> WindowPlan:
    """The model at these windows [K]; the budget may be exceeded."""
    cell, pass_s = WindowCell(problem, survival, round_trip_s), problem.base_round_s
    for _ in range(4):
        plan = cell.plan(cell.table(pass_s), lengths)
        pass_s = plan.pass_s
        cell.share_out(plan.bandwidths_hz)
    return plan
