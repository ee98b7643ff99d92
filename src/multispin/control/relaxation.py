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
Q phi + s H. For everything else (t > 0, concave rate, sum of logarithms) it is where Newton starts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multispin.control.deadline import AnyLengths
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


class Response(NamedTuple):
    """What each device does at given prices, and how that changes with ln q [..., K]."""

    lengths: Floats
    hertz: Floats
    lengths_slope: Floats
    hertz_slope: Floats


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

    def closed_form(self, deadline_s: Floats, bandwidth_price: Floats) -> Floats:
        """The stationary L, no limits, at prices and deadlines [..., 1] -> [..., K].

        Exact for sum goodput, t = 0 and constant efficiency; else that of such a cell with the
        efficiencies of equal shares.
        """
        problem, a = self.problem, self._decay
        s = problem.draft_s_per_token
        c = self._weight(deadline_s) * problem.equal_share_hz_s * bandwidth_price
        log_c = np.log(np.maximum(c, _TINY)) - self._log_gain
        # below this share of the deadline drafting is free; (phi - y)/s would cancel
        is_instant = s * (problem.max_draft_length + 1.0) < 1e-9 * deadline_s
        slow = np.where(is_instant, deadline_s, s)
        k = a / (2.0 * slow)
        w = lambert_w0_of_exp(np.log(k) + 0.5 * log_c + k * deadline_s)
        instant = (2.0 * np.log(deadline_s) - log_c) / a
        return np.where(is_instant, instant, (deadline_s - w / k) / slow)

    def respond(
        self,
        deadline_s: Floats,
        bandwidth_price: Floats,
        price: float,
        least: AnyLengths,
        near: Floats,
    ) -> Response:
        """One Newton step on f(L) = ln u'(L) - ln(p t + q db/dL) from ``near`` [..., K].

        Prices and deadlines are [..., 1]: ``bandwidth_price`` is q > 0 in utility per hertz,
        ``price`` is p in utility per second. f falls and is concave but close to 0, so that all
        steps after the first approach the root from above. Lengths stay between ``least`` and what
        the whole band can carry; the hertz follow the step by a hyperbola in the rate.
        """
        problem, a = self.problem, self._decay
        s = problem.draft_s_per_token
        token_price = price * problem.verify_per_token_s
        longest = np.maximum(self._longest(deadline_s), least)
        # without a header the first bits are free where the rate is concave: the slope says nothing
        lengths = np.minimum(np.maximum(near, np.maximum(least, 0.02)), longest)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rate, per_s = self._rate(deadline_s, lengths)
            hertz, slope, curve = problem.uplink.bandwidth_derivatives(rate)
            rise = self._weight(deadline_s) * per_s * per_s  # dR/dL
            hertz_rise = slope * rise  # db/dL
            marginal = token_price + bandwidth_price * hertz_rise
            cost_rise = bandwidth_price * (curve * rise * rise + 2.0 * s * per_s * hertz_rise)
            f = self._log_gain - a * lengths - np.log(marginal)
            f_slope = -a - cost_rise / marginal
            if problem.objective.kind == "proportional":  # u = ln E: u' = E'/E
                expected = np.expm1(-a * (lengths + 1.0)) / np.expm1(-a)
                f -= np.log(expected)
                f_slope -= np.exp(self._log_gain - a * lengths) / expected
            step = lengths - f / f_slope
            # no number: too late for any bandwidth, or no bits at all
            step = np.where(np.isnan(step), 0.5 * (lengths + np.where(f > 0, longest, least)), step)
            step = np.minimum(np.maximum(step, least), longest)
            moved = self._rate(deadline_s, step)[0] - rate
            # a hyperbola in the rate, which is what b(R) is near the most that any band carries
            below = np.maximum(slope - 0.5 * curve * moved, 0.1 * slope)
            after = np.maximum(hertz + slope * slope * moved / np.maximum(below, _TINY), 0.0)
            lean = bandwidth_price * hertz_rise / (marginal * f_slope)  # -(df/d ln q)/(df/dL)
            hertz_slope = hertz_rise * lean * after / hertz
            is_free = (step > least) & (step < longest) & np.isfinite(hertz_slope)
            lean, hertz_slope = np.where(is_free, lean, 0.0), np.where(is_free, hertz_slope, 0.0)
            return Response(step, np.fmin(after, 1e30), lean, hertz_slope)

    def _longest(self, deadline_s: Floats) -> Floats:
        """The real L that device k could send by phi with the whole band: [..., 1] -> [..., K]."""
        problem = self.problem
        bits = deadline_s * problem.alone_rate - problem.bits_per_draft
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            longest = bits / self._token_bits
        # 0/0 or x/0: drafting and uploading take no time at all; fmin takes the number
        return np.fmin(longest, problem.max_draft_length)

    def _weight(self, deadline_s: Floats) -> Floats:
        """Q phi + s H [..., K]: dR/dL is that over the square of the time to upload."""
        problem = self.problem
        return (
            problem.bits_per_token * deadline_s + problem.draft_s_per_token * problem.bits_per_draft
        )

    def _rate(self, deadline_s: Floats, lengths: Floats) -> tuple[Floats, Floats]:
        """bit/s that a draft, header included, needs to arrive by phi, and 1/(time to upload)."""
        problem = self.problem
        left = deadline_s - lengths * problem.draft_s_per_token
        per_s = 1.0 / np.maximum(left, _TINY)
        return (problem.bits_per_token * lengths + problem.bits_per_draft) * per_s, per_s
