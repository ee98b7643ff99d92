"""Real-valued draft lengths for a deadline phi and a price of bandwidth: closed form and Newton.

At deadline phi each device on its own maximises u(L) - p t L - q b(L, phi), where p is the price of
time, t the verification time per token and q (utility per hertz) the multiplier of sum b = B.
The stationary point solves

    u'(L) = p t + q db/dL,      db/dL = b'(R) (Q phi + s H) / (phi - L s)^2.

Sum goodput, t = 0, constant efficiency r: with y = phi - L s it reads y e^(a y/(2 s)) = const,
a = |ln alpha|, hence by Lambert's W_0

    y = (2 s / a) W_0( a/(2 s) sqrt(C) e^(a phi/(2 s)) ),
    C = q (Q phi + s H) (1 - alpha) / (r alpha a),      L = (phi - y) / s.

Source: arXiv 2606.04581 for H = 0, re-derived with the header, which only turns Q phi into
Q phi + s H. Everything else (t > 0, concave rate, sum of logarithms) goes by a safeguarded Newton.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.control.problem import Floats, Problem

_TINY = 1e-290


def lambert_w0_of_exp(log_x: Floats) -> Floats:
    """W_0(e^l), the w > 0 with w + ln w = l, for any l: the argument itself would overflow.

    Starts within a tenth: l - ln l far out, e^l/(1 + e^l) far below, a parabola between. Then two
    steps of Fritsch, Shafer and Crowley (1973), each of which quadruples the digits.
    """
    low = np.exp(np.minimum(log_x, 0.0))
    high = np.maximum(log_x, 1.0)
    middle = 0.567 + log_x * (0.362 + log_x * 0.072)  # W_0(e^l) to second order at l = 0
    w = np.where(log_x > 1.5, high - np.log(high) * (high / (1.0 + high)), middle)
    w = np.maximum(np.where(log_x < -1.5, low / (1.0 + low), w), _TINY)
    for _ in range(2):
        z = log_x - w - np.log(w)
        above = 1.0 + w
        q = 2.0 * above * (above + (2.0 / 3.0) * z)
        w *= 1.0 + z * (q - z) / (above * (q - 2.0 * z))
    return w


class _Terms(NamedTuple):
    """What the closed form needs of a deadline, whatever the price [..., K]."""

    log_c: Floats  # ln(C/q)
    log_x: Floats  # logarithm of the argument of W_0, without sqrt(q)
    y_per_w: Floats
    slow: Floats  # s, or phi where drafting takes no time
    is_instant: npt.NDArray[np.bool_]


class Relaxation:
    """The real-valued problem of one cell; what does not depend on prices is computed once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        # |ln alpha|, inside what the formulas can divide by: alpha = 0 and 1 are legal
        decay = -np.log(np.maximum(problem.acceptance, 1e-300))
        self._decay = np.clip(decay, 1e-12, 700.0)
        # ln(a alpha/(1 - alpha)): the logarithm of dE[N]/dL at L = 0
        self._log_gain = np.log(self._decay / np.expm1(self._decay))
        self._token_bits = problem.bits_per_token + problem.draft_s_per_token * problem.alone_rate

        self._terms_at: Floats | None = None
        self._terms: _Terms

    def longest(self, deadline_s: Floats) -> Floats:
        """The real L that device k could send by phi with the whole band: [..., 1] -> [..., K]."""
        problem = self.problem
        bits = deadline_s * problem.alone_rate - problem.bits_per_draft
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            longest = bits / self._token_bits
        # 0/0 or x/0: drafting and uploading take no time at all
        longest = np.where(np.isnan(longest), np.inf, longest)
        return np.minimum(np.maximum(longest, problem.min_draft_length), problem.max_draft_length)

    def lengths(
        self, deadline_s: Floats, bandwidth_price: Floats, price: float, near: Floats | None = None
    ) -> Floats:
        """The real L in [min, longest] for each device: prices, deadlines [..., 1] -> [..., K].

        ``bandwidth_price`` is q > 0 in utility per hertz, ``price`` is p in utility per second.
        ``near`` [..., K], lengths at similar prices, saves Newton steps.
        """
        problem = self.problem
        longest = self.longest(deadline_s)
        token_price = price * problem.verify_per_token_s
        if problem.objective.kind == "sum" and token_price == 0 and problem.uplink.linear:
            lengths = self._closed_form(deadline_s, bandwidth_price)
        else:
            lengths = self._newton(deadline_s, bandwidth_price, token_price, longest, near)
        return np.minimum(np.maximum(lengths, problem.min_draft_length), longest)

    def _closed_form(self, deadline_s: Floats, bandwidth_price: Floats) -> Floats:
        if deadline_s is not self._terms_at:  # many prices are tried at the same deadlines
            self._terms_at, self._terms = deadline_s, self._closed_form_terms(deadline_s)
        terms = self._terms
        log_price = np.log(np.maximum(bandwidth_price, _TINY))
        w = lambert_w0_of_exp(terms.log_x + 0.5 * log_price)
        lengths = (deadline_s - w * terms.y_per_w) / terms.slow
        if terms.is_instant.any():
            instant = (2.0 * np.log(deadline_s) - terms.log_c - log_price) / self._decay
            lengths = np.where(terms.is_instant, instant, lengths)
        return lengths

    def _closed_form_terms(self, deadline_s: Floats) -> _Terms:
        problem, a = self.problem, self._decay
        s = problem.draft_s_per_token
        hz_s = problem.uplink.bandwidth(
            problem.bits_per_token * deadline_s + s * problem.bits_per_draft
        )
        log_c = np.log(np.maximum(hz_s, _TINY)) - self._log_gain
        # below this share of the deadline drafting is free; (phi - y)/s would cancel
        is_instant = s * (problem.max_draft_length + 1.0) < 1e-9 * deadline_s
        slow = np.where(is_instant, deadline_s, s)
        k = a / (2.0 * slow)
        log_x = np.log(k) + 0.5 * log_c + k * deadline_s
        return _Terms(log_c, log_x, 1.0 / k, slow, is_instant)

    def _newton(
        self,
        deadline_s: Floats,
        bandwidth_price: Floats,
        token_price: float,
        longest: Floats,
        near: Floats | None,
    ) -> Floats:
        """Root of f(L) = ln u'(L) - ln(p t + q db/dL), falling in L; bisects where Newton leaves.

        Six steps from the middle, two from a near point: far below a token, all rounding needs.
        """
        problem, a = self.problem, self._decay
        s = problem.draft_s_per_token
        proportional = problem.objective.kind == "proportional"
        least = float(problem.min_draft_length)
        low, high = np.full(longest.shape, least), longest
        lengths = 0.5 * (low + high) if near is None else np.minimum(np.maximum(near, low), high)
        weight = problem.bits_per_token * deadline_s + s * problem.bits_per_draft  # Q phi + s H
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for _ in range(6 if near is None else 2):
                per_s = 1.0 / np.maximum(deadline_s - lengths * s, _TINY)
                bits = problem.bits_per_token * lengths + problem.bits_per_draft
                _, slope, curve = problem.uplink.bandwidth_derivatives(bits * per_s)
                rise = weight * per_s * per_s  # dR/dL
                pull = bandwidth_price * rise
                marginal = token_price + pull * slope
                cost_rise = pull * (curve * rise + 2.0 * s * (slope * per_s))
                f = self._log_gain - a * lengths - np.log(marginal)
                f_slope = -a - cost_rise / marginal
                if proportional:  # u = ln E: u' = E'/E
                    expected = np.expm1(-a * (lengths + 1.0)) / np.expm1(-a)
                    f = f - np.log(expected)
                    f_slope = f_slope - np.exp(self._log_gain - a * lengths) / expected
                is_low = f > 0
                low = np.where(is_low, lengths, low)
                high = np.where(is_low, high, lengths)
                step = np.minimum(np.maximum(lengths - f / f_slope, low), high)
                # past a limit: try the limit itself; past a point already tried, or NaN: bisect
                is_tried = (step == low) & (low > least) | (step == high) & (high < longest)
                is_lost = (is_tried & (step != lengths)) | np.isnan(step)
                lengths = np.where(is_lost, 0.5 * (low + high), step)
        return lengths
