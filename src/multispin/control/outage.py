"""Inference outage: a device gets fewer than n tokens by a deadline D.

The clock starts with a round. Tokens come with the verdict that ends a round of length T, so that
R = floor(D/T) whole rounds count and the one that D cuts counts nothing. Each commits N tokens,
those accepted of L drafted and one more: a geometric number cut off at c = L + 1,

    P(N >= i) = a^(i-1), i = 1..c
    E[N]      = (1 - a^c) / (1 - a)
    Var[N]    = ((1 - a^c)(a + a^c) - 2 c (1 - a) a^c) / (1 - a)^2

    P(outage) = P(N_1 + ... + N_R < n) ~ Phi((n - 1/2 - R E[N]) / sqrt(R Var[N]))

with independent rounds; 1/2 because tokens are whole (de Moivre and Laplace's correction). The true
probability never rises with L, since a longer draft commits at least as much whatever is accepted.
The Gaussian one may: beyond some L the variance grows faster than the mean. So the outage of L is
here the least Gaussian figure of all lengths up to L, and those beyond n - 1 change nothing.
Idea of an outage of inference: arXiv 2504.03686.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput

Floats = npt.NDArray[np.float64]
Lengths = npt.NDArray[np.int64]

_ROUNDING = 1e-9  # relative: a round that ends at the deadline is in time


@dataclass(frozen=True)
class Outage:
    """What each device is owed: ``tokens`` by ``deadline_s``, missed at most so often."""

    tokens: int
    deadline_s: float
    max_probability: float

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise BadInput("outage_tokens", self.tokens, "must be 1 or more tokens")
        if not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise BadInput("outage_deadline_s", self.deadline_s, "must be above 0 s")
        if not 0 < self.max_probability < 1:
            raise BadInput(
                "max_outage", self.max_probability, "is a probability: between 0 and 1, not either"
            )


def whole_rounds(deadline_s: float, round_s: npt.ArrayLike) -> Floats:
    """R = floor(D/T), shape of ``round_s``."""
    return np.asarray(np.floor(deadline_s / np.asarray(round_s) * (1 + _ROUNDING)))


def token_moments(acceptance: Floats, longest: int) -> tuple[Floats, Floats]:
    """E[N] and Var[N] for L = 0..longest [longest + 1, K].

    Summed over L, without a subtraction: the closed form of the variance loses all digits at a = 1.
    Var rises by p (1 - p) + 2 p (L - E[accepted]) with token L + 1, p = a^(L+1).
    """
    position = np.arange(1, longest + 1)[:, None]
    with np.errstate(divide="ignore"):
        log_reach = position * np.log(acceptance)
    reach, missed = np.exp(log_reach), -np.expm1(log_reach)  # all up to here accepted, or not
    rejected = np.cumsum(missed, axis=0) - missed  # L - E[accepted] before this token
    first = np.zeros((1, len(acceptance)))
    mean = 1.0 + np.concatenate([first, np.cumsum(reach, axis=0)])
    rise = reach * (missed + 2.0 * rejected)
    return mean, np.concatenate([first, np.cumsum(rise, axis=0)])


def gaussian_outage(
    mean: Floats, variance: Floats, rounds: npt.ArrayLike, tokens: npt.ArrayLike
) -> Floats:
    """Phi((n - 1/2 - R mean) / sqrt(R variance)), all four broadcast; a step without variance."""
    rounds = np.asarray(rounds, dtype=np.float64)
    short = np.asarray(tokens) - 0.5 - rounds * mean
    with np.errstate(divide="ignore"):
        return normal_cdf(short / np.sqrt(rounds * variance))


def planned_outage(outage: Outage, acceptance: Floats, lengths: Lengths, round_s: float) -> Floats:
    """What the model expects of lengths [K] in rounds of ``round_s`` [K]: Gaussian, least up to L.

    ``outage.max_probability`` plays no part.
    """
    longest = min(int(lengths.max()), outage.tokens - 1)
    mean, variance = token_moments(acceptance, longest)
    rounds = whole_rounds(outage.deadline_s, round_s)
    least = np.minimum.accumulate(gaussian_outage(mean, variance, rounds, outage.tokens))
    return np.asarray(least[np.minimum(lengths, longest), np.arange(len(lengths))])


def exact_outage(acceptance: float, length: int, num_rounds: int, tokens: int) -> float:
    """P(N_1 + ... + N_R < n) by convolution: the law itself, R times slower than its moments."""
    law = np.zeros(length + 2)  # of N, from 0 on
    law[1:] = acceptance ** np.arange(length + 1)
    law[1:-1] *= 1.0 - acceptance
    total = np.ones(1)
    for _ in range(num_rounds):
        total = np.convolve(total, law)[:tokens]
    return float(total[:tokens].sum())


def longest_rounds(outage: Outage, acceptance: Floats, longest: int) -> Floats:
    """The longest round [O, K] in which length 0..O-1 keeps the outage: D over the rounds it needs.

    R E - z sqrt(R Var) >= n - 1/2 from sqrt(R) = (z s + sqrt(z^2 s^2 + 4 E (n - 1/2))) / (2 E) on,
    s^2 = Var. Never falls with the length. O - 1 is ``longest`` or n - 1, whichever is less.
    """
    mean, variance = token_moments(acceptance, min(longest, outage.tokens - 1))
    quantile = NormalDist().inv_cdf(1.0 - outage.max_probability)
    least = 4.0 * mean * (outage.tokens - 0.5)
    root = (quantile * np.sqrt(variance) + np.sqrt(quantile**2 * variance + least)) / (2.0 * mean)
    rounds = np.maximum(np.ceil(root**2 * (1 - _ROUNDING)), 1.0)
    return np.asarray(outage.deadline_s / np.minimum.accumulate(rounds))


def normal_cdf(x: Floats) -> Floats:
    """Phi."""
    from scipy.special import ndtr  # type: ignore[import-untyped]  # noqa: PLC0415 - slow to import

    return np.asarray(ndtr(x), dtype=np.float64)
