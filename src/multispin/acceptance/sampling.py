"""Temperature, top-k, top-p and min-p: from one row of logits to the tokens that survive."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.acceptance.gumbel import checked_peak, group_maxima, scale
from multispin.types import SamplingParams

Row = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

# A nucleus is first sought among about so many top tokens (median 2, at most 122 on real text).
_NUCLEUS_GUESS: Final = 128
_SLACK: Final = 1e-9  # far above the rounding of any sum here
_FEW: Final = 256  # tokens that a stable argsort orders fastest
_BLOCK: Final = 1 << 14  # of a vocabulary-wide pass in double precision: stays in the L1/L2 cache


class Support(NamedTuple):
    """Tokens with positive probability, most probable first, ties by smaller id.

    p_i = weights_i / sum(weights), weights = exp(scaled), scaled = (l - max l) / T <= 0.
    """

    ids: npt.NDArray[np.int64]  # [n]
    scaled: Floats  # [n]
    weights: Floats  # [n]

    def first(self, n: int) -> Support:
        return Support(self.ids[:n], self.scaled[:n], self.weights[:n])


def is_truncated(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def truncate(row: Row, params: SamplingParams) -> Support:
    """Apply top-k, then top-p, then min-p, each on the distribution that the one before left.

    top-k keeps the k most probable tokens; top-p the fewest most probable tokens whose
    probabilities reach P; min-p those with at least ``min_p`` times the highest probability.
    Equal to sorting the whole vocabulary, without doing so.
    """
    tops = group_maxima(row)
    peak = checked_peak(tops)
    t, mass = params.temperature, params.top_p
    if 0 < params.top_k < row.size:
        support = _at_least(row, _kth_largest(row, tops, params.top_k), peak, t)
        support = support.first(params.top_k)
        if mass < 1.0:
            total = support.weights.cumsum()
            support = support.first(_cut(total, mass * total[-1]))
    elif mass < 1.0:
        support = _nucleus(row, tops, peak, t, mass)
    elif params.min_p > 0.0:
        support = _at_least(row, _floor(peak, t, math.log(params.min_p)), peak, t)
    else:
        support = _at_least(row, -math.inf, peak, t)
    # Tokens of weight 0 (logit -inf, or exp underflowed) have no probability to be drawn with.
    return support.first(int(np.count_nonzero(support.weights >= (params.min_p or 5e-324))))


def top(row: Row, temperature: float, n: int) -> Support:
    """The n most probable tokens (fewer where fewer have positive probability)."""
    return truncate(row, SamplingParams(temperature=temperature, top_k=n))


def total_weight(row: Row, peak: float, temperature: float) -> float:
    """Z = sum over the vocabulary of exp((l - peak) / T), in double precision."""
    total = 0.0
    for start in range(0, row.size, _BLOCK):
        weights = scale(row[start : start + _BLOCK], peak, temperature)
        np.exp(weights, out=weights)
        total += float(weights.sum())
    return total


def _nucleus(row: Row, tops: Row, peak: float, temperature: float, mass: float) -> Support:
    """The fewest most probable tokens with weights that sum to at least ``mass`` * Z."""
    support = _at_least(row, _kth_largest(row, tops, _NUCLEUS_GUESS), peak, temperature)
    total = support.weights.cumsum()
    seen, num_unseen = float(total[-1]), row.size - support.ids.size
    # An unseen token weighs at most as much as the last one seen. Where that leaves the border
    # in one place, Z is not needed.
    highest = seen + num_unseen * float(support.weights[-1])
    cut = _cut(total, mass * seen * (1 - _SLACK))
    if cut < total.size and cut == _cut(total, mass * highest * (1 + _SLACK)):
        return support.first(cut)
    z = total_weight(row, peak, temperature)
    if num_unseen == 0 or mass * z <= seen:
        return support.first(_cut(total, mass * z))
    # Tokens lighter than (1 - P) Z / V weigh less than (1 - P) Z together: the rest reaches P.
    least = math.log((1.0 - mass) * z / row.size)
    support = _at_least(row, _floor(peak, temperature, least), peak, temperature)
    return support.first(_cut(support.weights.cumsum(), mass * z))


def _cut(total: Floats, target: float) -> int:
    """How many leading tokens it takes to reach the target (all, if rounding never does)."""
    return min(int(total.searchsorted(target)) + 1, total.size)


def _kth_largest(row: Row, tops: Row, k: int) -> float:
    """A logit that at least k tokens reach, and no fewer than needed: the k-th largest top.

    Each of k groups has a token that reaches the k-th largest group maximum.
    """
    values = tops if k <= tops.size else row
    border = max(values.size - k, 0)
    return float(np.partition(values, border)[border])


def _floor(peak: float, temperature: float, log_weight: float) -> float:
    """A logit below every token of at least this weight, with room for rounding."""
    floor = peak + temperature * log_weight
    floor -= 1e-6 * (1.0 + abs(floor) + abs(peak))
    return floor if floor > -3e38 else -math.inf  # single precision ends there


def _at_least(row: Row, floor: float, peak: float, temperature: float) -> Support:
    """All tokens whose logit is finite and reaches the floor, sorted."""
    ids = (row >= floor if floor > -math.inf else row > floor).nonzero()[0]
    logits = row[ids]
    order = ids[(-logits).argsort(kind="stable")] if ids.size <= _FEW else _sorted(ids, logits)
    scaled = scale(row[order], peak, temperature)
    return Support(order, scaled, np.exp(scaled))


def _sorted(ids: npt.NDArray[np.int64], logits: Row) -> npt.NDArray[np.int64]:
    """Ids by falling logit, then rising id: several times as fast as a stable argsort of many.

    One integer per token sorts that way. Flipping the lower bits of negative floats makes bit
    patterns ascend with the value; adding 0.0 turns -0.0 into 0.0, with which it ties.
    """
    bits = (logits + np.float32(0.0)).view(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    order = np.bitwise_not(bits).astype(np.int64)
    order <<= 32
    order |= ids
    order.sort()
    order &= 0xFFFFFFFF
    return order
