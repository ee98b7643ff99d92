"""What a plan gives without a barrier: each device's cycle, rate, and share of the band.

Device k's cycle, with A_k = L_k s_k + (Q_k L_k + H_k)/R_k(B_k) + round trip_k spent away from the
server (0 for L_k = 0, which the server generates alone, a token in every pass), and its rate:

    C_k = A_k + W_k,      g_k = E[N_k(L_k)] / C_k

W_k, the wait for a pass and the pass itself, couples the devices (``passes``). All lengths come as
candidates [C, K], evaluated together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multispin.control.passes import PassTimes, pass_times, verification_s
from multispin.control.problem import Floats, Lengths, Problem, expected_tokens

TINY = 1e-290
SLACK = 1e-3  # of the least goodput: bandwidth is split for more, the score accepts less
LONGEST_S = 1e6  # instead of infinity


class State(NamedTuple):
    """C candidates, evaluated; all [C, K] but the last two."""

    lengths: Lengths
    hertz: Floats
    away_s: Floats
    rate: Floats
    wait_s: Floats
    before_s: Floats
    is_busy: Floats
    joined_s: Floats
    others_s: Floats
    score: Floats  # [C]
    plenty: Floats  # [C, 1] 1/sqrt(lambda)

    def take(self, at: list[int]) -> State:
        return State._make(values[at] for values in self)

    def repeat(self, num: int) -> State:
        return self.take([0] * num)


class Cell:
    """A problem, its round trips, and what is owed to each device."""

    def __init__(self, problem: Problem, round_trip_s: Floats, least_share: float | Floats) -> None:
        self.problem = problem
        self.round_trip_s = round_trip_s
        self.least: float | Floats = np.maximum(
            least_share / problem.base_round_s, problem.objective.min_goodput_tokens_per_s
        )
        self.shortest = max(problem.min_draft_length, 1)

    def options(self, wanted: Lengths) -> Lengths:
        """The nearest legal lengths: 0, or the shortest draft up to the longest."""
        legal = np.clip(wanted, self.shortest, self.problem.max_draft_length)
        off = (wanted <= 0) | (self.problem.max_draft_length == 0)
        return np.asarray(np.where(off, 0, legal), dtype=np.int64)

    def away_s(self, lengths: Lengths, hertz: Floats) -> Floats:
        """A_k [..., K]."""
        problem = self.problem
        bits = problem.draft_bits(lengths)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            upload = np.where(bits > 0, bits / problem.uplink.rate(hertz), 0.0)
        away = lengths * problem.draft_s_per_token + upload + self.round_trip_s
        return np.asarray(np.where(lengths > 0, np.minimum(away, LONGEST_S), 0.0))

    # --- evaluate ------------------------------------------------------------------------------

    def evaluate(
        self,
        lengths: Lengths,
        near: State | None = None,
        *,
        num_rounds: int = 3,
        num_steps: int = 12,
    ) -> State:
        """The model at candidates [C, K], from the waits and bandwidths of ``near`` [C, K].

        A round splits the band for the waits, then takes so many steps towards the waits.
        """
        if near is None:
            hertz = np.zeros(lengths.shape)
            cost = verification_s(self.problem, lengths)
            wait = self.problem.verify_fixed_s + cost.sum(axis=-1, keepdims=True) + 0.0 * cost
        else:
            hertz, wait = near.hertz, near.wait_s
        times: PassTimes | None = None
        for _ in range(num_rounds):
            hertz, plenty = self.share_bandwidth(lengths, wait, hertz)
            away = self.away_s(lengths, hertz)
            times = pass_times(self.problem, lengths, away, wait, num_steps)
            wait = times.wait_s
        assert times is not None
        rate = expected_tokens(self.problem.acceptance, lengths) / (away + wait)
        return State(lengths, hertz, away, rate, *times, self._score(rate), plenty)

    def step(self, lengths: Lengths, near: State) -> State:
        """``evaluate``, roughly: good enough to follow candidates that change little."""
        return self.evaluate(lengths, near, num_rounds=1, num_steps=4)

    def share_bandwidth(
        self, lengths: Lengths, wait_s: Floats, hertz: Floats
    ) -> tuple[Floats, Floats]:
        """Bandwidths [..., K] that maximise sum_k E_k/C_k for given waits, and 1/sqrt(lambda).

        With D_k the cycle without its upload, every slope E bits R'/(D R + bits)^2 is lambda, but
        where the least goodput asks for more. At R = r b, with q = bits/r and y = 1/sqrt(lambda),
        that is b = y sqrt(E q)/D - q/D. A concave rate has no such form; there the step
        b <- y b sqrt(slope) contracts, because the elasticity of the slope lies between -2 and 0.
        Either way y is what makes sum b = B.
        """
        problem = self.problem
        bits, uplink = problem.draft_bits(lengths), problem.uplink
        drafts = bits > 0
        rest = lengths * problem.draft_s_per_token + self.round_trip_s + wait_s  # D
        least = np.where(drafts, np.maximum(self._bandwidth_owed(lengths, wait_s), TINY), 0.0)
        equal = problem.bandwidth_hz / np.maximum(drafts.sum(axis=-1, keepdims=True), 1)
        hertz = np.where(hertz > 0, hertz, equal)
        worth = expected_tokens(problem.acceptance, lengths)
        proportional = problem.objective.kind == "proportional"
        for _ in range(1 if uplink.linear and not proportional else 8):
            rate = np.maximum(uplink.rate(hertz), TINY)
            if proportional:  # d log g = dg / g: a token counts the more, the longer the cycle
                worth = rest + bits / rate
            if uplink.linear:
                need = bits * hertz / rate
                rise, off = np.sqrt(worth * need) / rest, need / rest
            else:
                slope = (uplink.rate(1.0001 * hertz) - uplink.rate(0.9999 * hertz)) / 2e-4
                rise = np.sqrt(worth * bits * slope * hertz) / (rest * rate + bits)
                off = np.zeros_like(rise)
            hertz, plenty = _fill(np.where(drafts, rise, 0.0), off, least, problem.bandwidth_hz)
            hertz = np.where(drafts, hertz, equal)
        return np.where(drafts, hertz, 0.0), plenty

    def _bandwidth_owed(self, lengths: Lengths, wait_s: Floats) -> Floats:
        """Bandwidths [..., K] at which g_k is the least goodput; 0 where B has not that much."""
        problem = self.problem
        bits = problem.draft_bits(lengths)
        if np.max(self.least) == 0:
            return np.zeros_like(bits)
        least = np.maximum(self.least * (1 + SLACK), TINY)
        cycle = expected_tokens(problem.acceptance, lengths) / least
        left = cycle - wait_s - lengths * problem.draft_s_per_token - self.round_trip_s
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            owed = problem.uplink.bandwidth(np.where(left > 0, bits / left, 0.0))
        owed = np.where((left > 0) & (owed < problem.bandwidth_hz), owed, 0.0)
        fits = owed.sum(axis=-1, keepdims=True) < problem.bandwidth_hz
        return np.asarray(np.where(fits, owed, 0.0), dtype=np.float64)

    def _score(self, rate: Floats) -> Floats:
        """The objective [C]; if goodput is owed, below every objective, less so if little is."""
        least = self.least * (1 - SLACK)
        missing = np.maximum(1.0 - rate / (least + TINY), 0.0).sum(axis=-1)
        if self.problem.objective.kind == "proportional":
            value = np.log(np.maximum(rate, TINY)).sum(axis=-1)
        else:
            value = rate.sum(axis=-1)
        return np.asarray(np.where(missing > 0, -1e9 * (1.0 + missing), value), dtype=np.float64)


def _fill(rise: Floats, off: Floats, least: Floats, budget: float) -> tuple[Floats, Floats]:
    """max(rise y - off, least) [..., K] with the y [..., 1] at which they sum to the budget.

    The sum is convex and piecewise linear in y: Newton from above, where all are above ``least``.
    """
    y = (budget + np.where(rise > 0, off, 0.0).sum(axis=-1, keepdims=True)) / np.maximum(
        rise.sum(axis=-1, keepdims=True), TINY
    )
    for _ in range(6):
        is_more = rise * y - off > least
        excess = np.where(is_more, rise * y - off, least).sum(axis=-1, keepdims=True) - budget
        slope = np.where(is_more, rise, 0.0).sum(axis=-1, keepdims=True)
        y = np.maximum(y - excess / np.maximum(slope, TINY), 0.0)
    filled = np.maximum(np.where(rise > 0, rise * y - off, 0.0), least)
    return filled / np.maximum(filled.sum(axis=-1, keepdims=True) / budget, 1.0), y
