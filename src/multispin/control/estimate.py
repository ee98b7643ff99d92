"""What the controller believes, from what was measured: robust, forgetful, never NaN.

Every estimator starts from a prior, forgets at a stated half-life, and takes the time as an
argument. One rule for absurd measurements: what cannot be true (negative, NaN, infinite) is
ignored and ``observe`` answers False, because a clock that jumped must not end a session. What the
caller got wrong (a half-life of 0, more tokens accepted than drafted) is a BadInput.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from multispin.control.problem import Floats
from multispin.errors import BadInput

CLIP = 3.0
"""An observation further from the mean than this many mean absolute deviations is winsorised."""

LEAST_DEVIATION = 0.05
"""The deviation never counts as less than this share of the mean: steady is not frozen."""

CHANGE_RUN = 4
"""So many clipped on the same side in a row are a change and no outliers."""

ABSURD = 1e100
"""Measurements from here on are ignored, as infinity is."""

COLLAPSE = 1e-3
"""Probability below which a run of drafts without an accepted token is no bad luck."""

FASTEST_UPLINK = 1e12  # bit/s, where an upload took no time that the clock could see


def _require_positive(field_name: str, *values: float) -> None:
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise BadInput(field_name, value, "must be a positive number")


class RunningMean:
    """Exponentially weighted mean of a quantity >= 0 whose weights halve every ``half_life_s``.

        mean <- (W mean + w clip(x))/(W + w),      W <- 2^(-elapsed/half_life) W + w

    The prior is the first observation. W is never taken for less than the prior's weight, so that
    after a silence one datum does not rule alone. clip(x) keeps x within CLIP d of the mean, d the
    mean absolute deviation, weighted likewise (at first the prior's value, at least
    LEAST_DEVIATION of the mean). From the CHANGE_RUN-th in a row clipped on one side on, W falls
    back to the prior's weight and d doubles each time: a change is followed, whatever its size.
    """

    def __init__(self, prior: float, prior_weight: float, half_life_s: float) -> None:
        _require_positive("prior", prior)
        _require_positive("prior weight", prior_weight)
        _require_positive("half-life", half_life_s)
        self._prior_weight = prior_weight
        self._half_life_s = half_life_s
        self._mean = prior
        self._deviation = prior
        self._weight = prior_weight
        self._last_s: float | None = None
        self._run = 0  # clipped in a row: above if positive, below if negative

    def value(self) -> float:
        """The mean; the prior where nothing was observed. Time only lowers its weight."""
        return self._mean

    @property
    def is_known(self) -> bool:
        """Whether anything was observed."""
        return self._last_s is not None

    def weight(self, now_s: float) -> float:
        """How much was observed, in the unit of the weights, as it counts now."""
        elapsed = 0.0 if self._last_s is None else max(now_s - self._last_s, 0.0)
        return max(self._weight * math.exp2(-elapsed / self._half_life_s), self._prior_weight)

    def observe(self, value: float, now_s: float, weight: float = 1.0) -> bool:
        """Take one measurement; False if it cannot be one and was ignored."""
        if not (0 <= value < ABSURD and 0 < weight < ABSURD and math.isfinite(now_s)):
            return False
        old, mean = self.weight(now_s), self._mean
        if self._last_s is None or now_s > self._last_s:
            self._last_s = now_s
        spread = CLIP * max(self._deviation, LEAST_DEVIATION * mean)
        clipped = value
        if abs(value - mean) <= spread:
            self._run = 0
        else:
            side = 1 if value > mean else -1
            clipped = mean + side * spread
            self._run = self._run + side if side * self._run > 0 else side
            if abs(self._run) >= CHANGE_RUN:
                old = self._prior_weight
                self._deviation = min(2.0 * self._deviation, 1e150)
        gain = weight / (old + weight)
        self._deviation += gain * (abs(clipped - mean) - self._deviation)
        self._mean = (old * mean + weight * clipped) / (old + weight)
        self._weight = old + weight
        return True


@dataclass(frozen=True)
class DevicePrior:
    """What a device is taken for before it was measured, and how much that weighs."""

    draft_s_per_token: float = 0.02
    draft_tokens: float = 4.0  # weight, in tokens
    uplink_bits_per_s: float = 1e6
    uplink_bits: float = 500.0  # weight, in bits
    round_trip_s: float = 0.03
    round_trips: float = 1.0  # weight, in measurements


class DeviceEstimate:
    """Drafting time per token, uplink rate and round trip of one device.

    The rate is total bits over total seconds: the mean of seconds per bit, weighted by bits.
    """

    def __init__(self, prior: DevicePrior | None = None, half_life_s: float = 10.0) -> None:
        prior = prior or DevicePrior()
        _require_positive("uplink_bits_per_s", prior.uplink_bits_per_s)
        self._draft = RunningMean(prior.draft_s_per_token, prior.draft_tokens, half_life_s)
        self._upload = RunningMean(1.0 / prior.uplink_bits_per_s, prior.uplink_bits, half_life_s)
        self._trip = RunningMean(prior.round_trip_s, prior.round_trips, half_life_s)

    def observe_draft(self, num_tokens: int, draft_s: float, now_s: float) -> bool:
        """``num_tokens`` were drafted in ``draft_s``; no tokens are no evidence."""
        if num_tokens <= 0:
            return False
        return self._draft.observe(draft_s / num_tokens, now_s, weight=num_tokens)

    def observe_upload(self, num_bits: float, upload_s: float, now_s: float) -> bool:
        """``num_bits`` took ``upload_s`` on the uplink; no bits are no evidence."""
        if not num_bits > 0:
            return False
        return self._upload.observe(upload_s / num_bits, now_s, weight=num_bits)

    def observe_round_trip(self, round_trip_s: float, now_s: float) -> bool:
        return self._trip.observe(round_trip_s, now_s)

    @property
    def draft_s_per_token(self) -> float:
        return self._draft.value()

    @property
    def uplink_bits_per_s(self) -> float:
        return 1.0 / max(self._upload.value(), 1.0 / FASTEST_UPLINK)

    @property
    def round_trip_s(self) -> float:
        return self._trip.value()

    @property
    def has_round_trip(self) -> bool:
        """Whether it was measured at all."""
        return self._trip.is_known


@dataclass(frozen=True)
class AcceptancePrior:
    """Of one pair of models: its acceptance, and how many tokens' worth that counts.

    ``pair_tokens`` holds the mean over positions to the pair's acceptance, ``position_tokens``
    holds each position to that mean.
    """

    acceptance: float = 0.7
    pair_tokens: float = 4.0
    position_tokens: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance <= 1:
            raise BadInput("acceptance", self.acceptance, "must lie in [0, 1]")
        _require_positive("prior tokens", self.pair_tokens, self.position_tokens)


class _FadingCounts:
    """Counts by position, of which the last stands for all beyond; all fade together.

    New counts grow instead of old ones shrinking, which is one multiplication, not one a position.
    """

    def __init__(self, num_positions: int) -> None:
        self._counts = [0.0] * num_positions
        self._sum = 0.0
        self._unit = 1.0  # what one count is worth now, in what is stored

    def fade(self, keep: float) -> None:
        self._unit /= keep
        if self._unit > 1e100:
            self._counts, self._sum, self._unit = self.values(), self.total, 1.0

    def add(self, first: int, number: int) -> None:
        """One each at positions ``first`` to ``first + number - 1``."""
        counts, unit = self._counts, self._unit
        end = first + number
        for position in range(first, min(end, len(counts))):
            counts[position] += unit
        if end > len(counts):
            counts[-1] += unit * (end - max(first, len(counts)))
        self._sum += number * unit

    @property
    def total(self) -> float:
        return self._sum / self._unit

    def __getitem__(self, position: int) -> float:
        return self._counts[position] / self._unit

    def values(self) -> list[float]:
        return [count / self._unit for count in self._counts]


class AcceptanceEstimate:
    """a_j = P(token j accepted | tokens before it accepted) of one session, j = 0, 1, ...

    With A_j, R_j the tokens accepted and rejected at position j, each draft counting half as much
    after ``half_life_drafts`` further ones, alpha_0, v the prior of the pair, u of the positions:

        alpha = (sum A + v alpha_0) / (sum (A + R) + v)
        a_j = (A_j + u alpha) / (A_j + R_j + u)

    alpha is the maximum-likelihood acceptance of the geometric model (with v = 0), the one that
    `problem` takes. A token after the first rejection was not judged and counts nowhere; positions
    from ``max_length`` on count as the last. A run of drafts that fail at once, as unlikely as
    COLLAPSE, halves what was accepted with every further one: a collapse shows within a few drafts.
    """

    def __init__(
        self,
        prior: AcceptancePrior | None = None,
        half_life_drafts: float = 12.0,
        max_length: int = 32,
    ) -> None:
        _require_positive("half-life", half_life_drafts)
        _require_positive("max_length", max_length)
        self.prior = prior or AcceptancePrior()
        self._keep = 0.5 ** (1.0 / half_life_drafts)
        self._accepted = _FadingCounts(max_length)  # A
        self._rejected = _FadingCounts(max_length)  # R
        self._log_luck = 0.0  # log-probability of the present run of drafts that failed at once

    def observe(self, num_draft: int, num_accepted: int) -> bool:
        """A draft was verified; an empty one is no evidence. BadInput for impossible counts."""
        if not 0 <= num_accepted <= num_draft:
            raise BadInput("num_accepted", num_accepted, f"must be 0 to {num_draft}, the draft")
        if num_draft == 0:
            return False
        keep = self._keep
        if num_accepted > 0:
            self._log_luck = 0.0
        else:
            self._log_luck += math.log(max(1.0 - self._first, 0.1))
            keep = min(keep, 0.5) if self._log_luck < math.log(COLLAPSE) else keep
        self._accepted.fade(keep)
        self._rejected.fade(self._keep)
        self._accepted.add(0, num_accepted)
        self._rejected.add(num_accepted, min(num_draft - num_accepted, 1))
        return True

    @property
    def num_tokens(self) -> float:
        """Judged tokens, as they count now."""
        return self._accepted.total + self._rejected.total

    @property
    def alpha(self) -> float:
        prior = self.prior
        accepted = self._accepted.total + prior.pair_tokens * prior.acceptance
        return min(accepted / (self.num_tokens + prior.pair_tokens), 1.0)

    @property
    def _first(self) -> float:
        """a_0."""
        u, accepted, rejected = self.prior.position_tokens, self._accepted[0], self._rejected[0]
        return min((accepted + u * self.alpha) / (accepted + rejected + u), 1.0)

    def positions(self, length: int) -> Floats:
        """a_0 .. a_{length-1} [length]."""
        return np.asarray(survivals([self], length, conditional=True)[0], dtype=np.float64)

    def survival(self, length: int) -> Floats:
        """P(tokens 0..j all accepted) for j < length [length]: products of a, falling."""
        return np.asarray(survivals([self], length)[0], dtype=np.float64)


def survivals(
    sessions: Sequence[AcceptanceEstimate], length: int, *, conditional: bool = False
) -> Floats:
    """``survival`` (or a_j where ``conditional``) of many sessions at once [S, length]."""
    if length < 0:
        raise BadInput("length", length, "must be 0 or more tokens")
    if not sessions:
        return np.empty((0, length))
    accepted = np.array([s._accepted.values() for s in sessions])
    judged = accepted + np.array([s._rejected.values() for s in sessions])
    weight = np.array([s.prior.position_tokens for s in sessions])[:, None]
    alpha = np.array([s.alpha for s in sessions])[:, None]
    known = (accepted + weight * alpha) / (judged + weight)
    # Positions that are not kept apart are as good as the last.
    table = known[:, np.minimum(np.arange(length), known.shape[1] - 1)]
    np.minimum(table, 1.0, out=table)
    return table if conditional else np.asarray(np.cumprod(table, axis=-1), dtype=np.float64)


def equivalent_acceptance(survival: Floats) -> Floats:
    """The i.i.d. alpha that expects as many tokens as ``survival`` [..., L] does: [...].

    Root of sum_{j=1..L} alpha^j = sum_j survival_j, by 50 bisections; L must be 1 or more.
    """
    length = survival.shape[-1]
    if length == 0:
        raise BadInput("survival", "[]", "must hold at least one position")
    goal = np.clip(survival.sum(axis=-1), 0.0, length)
    low, high = np.zeros_like(goal), np.ones_like(goal)
    powers = np.arange(1, length + 1)
    for _ in range(50):
        middle = 0.5 * (low + high)
        is_low = (middle[..., None] ** powers).sum(axis=-1) < goal
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return np.asarray(high, dtype=np.float64)


@dataclass(frozen=True)
class VerificationFit:
    """T = fixed + per_device K + per_token rows, seconds."""

    fixed_s: float
    per_device_s: float = 0.0
    per_token_s: float = 0.0

    def seconds(self, num_rows: npt.ArrayLike, num_sequences: npt.ArrayLike) -> Floats:
        rows, sequences = np.asarray(num_rows), np.asarray(num_sequences)
        return np.asarray(
            self.fixed_s + self.per_device_s * sequences + self.per_token_s * rows, dtype=np.float64
        )


# (rows, sequences) at which the prior's shape is held against the measurements
_PRIOR_POINTS = ((1, 1), (8, 8), (32, 8))
_TABLE_SIZE = 15  # passes remembered per row count; their median shrugs off seven outliers
_LEAST_PASSES = 2  # of a row count, before its median counts


@dataclass
class _RowCount:
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_TABLE_SIZE))
    num_sequences: deque[int] = field(default_factory=lambda: deque(maxlen=_TABLE_SIZE))
    last_pass: int = 0


class VerificationCurve:
    """Time of a verification pass, from the server's own passes.

    A line and what it misses. The line minimises the forgotten sum of squared relative errors

        sum_i 2^(-age_i/half_life) ((T_0 + T_K K_i + t rows_i - y_i)/y_i)^2 + the same for the prior

    over T_0, T_K, t >= 0, where the prior's shape, scaled to the measured level, counts as
    three passes that are not forgotten. y_i is winsorised at 3 mean absolute deviations from what
    was expected. Real passes have steps (3 rows may cost more than 4): per row count the median of
    the last 15 is kept for four half-lives, and ``seconds`` multiplies the line with the ratio
    median/line, interpolated between the row counts that were seen and constant beyond them.
    """

    def __init__(self, prior: VerificationFit, half_life_passes: float = 100.0) -> None:
        _require_positive("half-life", half_life_passes)
        if min(prior.fixed_s, prior.per_device_s, prior.per_token_s) < 0:
            raise BadInput("verification prior", prior, "its times must be 0 or more")
        _require_positive("verification prior", float(prior.seconds(1, 1)))
        self.prior = prior
        self._half_life = half_life_passes
        self._keep = 0.5 ** (1.0 / half_life_passes)
        # in passes instead of seconds: y / prior, the level against which the prior is scaled
        self._level = RunningMean(1.0, 1.0, half_life_passes)
        self._gram = np.zeros((3, 3))  # sum w x x'
        self._moment = np.zeros(3)  # sum w x y
        self._table: dict[int, _RowCount] = {}
        self._num_passes = 0
        self._deviation = 1.0  # mean |y/expected - 1|
        self._run = 0
        self._fit: VerificationFit | None = prior
        self._expected = prior  # a fit at most 8 passes old

    def observe(self, num_rows: int, num_sequences: int, seconds: float) -> bool:
        """One pass was timed; False if the numbers cannot be true and were ignored."""
        if not (0 < seconds < ABSURD and 1 <= num_sequences <= num_rows):
            return False
        self._num_passes += 1
        self._level.observe(
            seconds / float(self.prior.seconds(num_rows, num_sequences)), float(self._num_passes)
        )
        row = self._table.setdefault(num_rows, _RowCount())
        row.seconds.append(seconds)
        row.num_sequences.append(num_sequences)
        row.last_pass = self._num_passes
        self._add(num_rows, num_sequences, seconds)
        self._fit = None
        if self._num_passes <= 8 or self._num_passes % 8 == 0:
            self._expected = self.fit
        return True

    def _add(self, num_rows: int, num_sequences: int, seconds: float) -> None:
        x = np.array([1.0, num_sequences, num_rows])
        expected = max(float(self._expected.seconds(num_rows, num_sequences)), 1e-12)
        error = seconds / expected - 1.0
        spread = CLIP * max(self._deviation, LEAST_DEVIATION)
        clipped = min(max(error, -spread), spread)
        side = (error > clipped) - (error < clipped)
        self._run = self._run + side if side * self._run > 0 else side
        if abs(self._run) >= CHANGE_RUN:  # a change: what came before counts little
            self._gram, self._moment = 0.25 * self._gram, 0.25 * self._moment
            self._deviation = min(2.0 * self._deviation, 1e6)
        else:
            self._forget(x)
        gain = max(1.0 / self._num_passes, 1.0 - self._keep)
        self._deviation += gain * (abs(clipped) - self._deviation)
        y = expected * (1.0 + clipped)
        weight = 1.0 / max(y, expected) ** 2
        self._gram += weight * np.outer(x, x)
        self._moment += weight * y * x

    def _forget(self, x: Floats) -> None:
        """Along x only: passes of one size say nothing about what others cost.

        G <- G - (1 - keep) G x x' G/(x' G x), and the moment so that the fit stays (Cao, Schwartz
        2000).
        """
        seen = self._gram @ x
        known = float(x @ seen)
        if known > 0:
            share = (1.0 - self._keep) / known
            self._moment -= share * float(x @ self._moment) * seen
            self._gram -= share * np.outer(seen, seen)

    @property
    def fit(self) -> VerificationFit:
        """The line, solved when it is asked for."""
        if self._fit is None:
            self._fit = self._solve()
        return self._fit

    def _solve(self) -> VerificationFit:
        gram, moment = self._gram.copy(), self._moment.copy()
        level = max(self._level.value(), 1e-12)
        for rows, sequences in _PRIOR_POINTS:
            x = np.array([1.0, sequences, rows])
            y = level * float(self.prior.seconds(rows, sequences))
            gram += np.outer(x, x) / y**2
            moment += x / y
        return VerificationFit(*(float(v) for v in _non_negative_least_squares(gram, moment)))

    def seconds(
        self, num_rows: npt.ArrayLike, num_sequences: npt.ArrayLike | None = None
    ) -> Floats:
        """Expected time of a pass with so many rows [...]; positive for rows >= 1.

        Without ``num_sequences`` that of the passes seen at the nearest row counts.
        """
        rows = np.asarray(num_rows, dtype=np.float64)
        fit = self.fit
        seen, medians, mean_sequences = self._medians()
        if len(seen) == 0:
            sequences = np.minimum(rows, 1.0) if num_sequences is None else num_sequences
            return fit.seconds(rows, sequences)
        ratio = medians / np.maximum(fit.seconds(seen, mean_sequences), 1e-12)
        if num_sequences is None:
            num_sequences = np.minimum(np.interp(rows, seen, mean_sequences), np.maximum(rows, 1))
        return np.asarray(fit.seconds(rows, num_sequences) * np.interp(rows, seen, ratio))

    def _medians(self) -> tuple[Floats, Floats, Floats]:
        """Row counts in rising order, median seconds, mean sequences [M]; none is stale."""
        oldest = self._num_passes - 4.0 * self._half_life
        self._table = {n: row for n, row in self._table.items() if row.last_pass >= oldest}
        kept = [n for n in sorted(self._table) if len(self._table[n].seconds) >= _LEAST_PASSES]
        rows = [self._table[n] for n in kept]
        return (
            np.array(kept, dtype=np.float64),
            np.array([np.median(row.seconds) for row in rows]),
            np.array([np.mean(row.num_sequences) for row in rows]),
        )


def _non_negative_least_squares(gram: Floats, moment: Floats) -> Floats:
    """argmin x'Gx/2 - m'x over x >= 0 for a positive definite G [n, n]: every support is tried."""
    scale = 1.0 / np.sqrt(np.diag(gram))
    scaled, goal = gram * np.outer(scale, scale), moment * scale
    best, best_loss = np.zeros(len(goal)), np.inf
    for size in range(1, len(goal) + 1):
        for support in itertools.combinations(range(len(goal)), size):
            at = list(support)
            x = np.zeros(len(goal))
            x[at] = np.linalg.lstsq(scaled[np.ix_(at, at)], goal[at], rcond=1e-12)[0]
            loss = float(0.5 * x @ scaled @ x - goal @ x)
            if (x >= 0).all() and loss < best_loss:
                best, best_loss = x, loss
    return best * scale
