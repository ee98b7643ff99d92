"""Gumbel-max sampling: argmax of (l_i - max l) / T - log E_i, with and without skipping."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from multispin.acceptance.noise import (
    BLOCK_BITS,
    LANES,
    Key,
    exponentials,
    group_members,
    group_minima,
    num_groups,
)
from multispin.errors import MultispinError

# Below this many tokens, looking at every one is cheaper than finding out which may be skipped.
_SMALL: Final = 2 * LANES
# Where the first lower bound on the winner is sought: tokens of so many groups, with bounds within
# so many nats of the highest. Any choice is exact; this one is fast on flat and on peaked rows.
_LEADERS: Final = 16
_PROMISING: Final = 6.0


def group_maxima(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The largest logit of each noise group; of a row of up to LANES logits, the row.  [groups]"""
    size = row.size
    if size <= LANES:
        return row
    tops = np.empty(num_groups(size), dtype=row.dtype)
    for block in range(-(-size >> BLOCK_BITS)):
        part = row[block << BLOCK_BITS : (block + 1) << BLOCK_BITS]
        top = tops[block * LANES : (block + 1) * LANES]
        whole = part.size // LANES
        if whole == 0:
            top[:] = part
            continue
        np.maximum.reduce(part[: whole * LANES].reshape(whole, LANES), axis=0, out=top)
        rest = part[whole * LANES :]
        np.maximum(top[: rest.size], rest, out=top[: rest.size])
    return tops


def checked_peak(tops: npt.NDArray[np.float32]) -> float:
    """The largest logit; raises if it is not finite, for then there is no distribution."""
    peak = float(tops.max())
    if not math.isfinite(peak):
        raise MultispinError(f"the model's logits have no finite maximum ({peak})")
    return peak


def scale(
    logits: npt.NDArray[np.float32], peak: float, temperature: float
) -> npt.NDArray[np.float64]:
    """(l - peak) / T in double precision: 0 for the best token, -inf for an excluded one."""
    scaled = logits.astype(np.float64)
    scaled -= peak
    if temperature < 1e-6:
        with np.errstate(over="ignore"):
            scaled /= temperature
    else:
        scaled /= temperature  # cannot overflow: float32 logits
    return scaled


def race(scaled: npt.NDArray[np.float64], ids: npt.NDArray[np.integer], key: Key) -> int:
    """Index (into ``ids``) of the winner among a few tokens; the first one on a tie."""
    e = exponentials(key, ids)
    np.log(e, out=e)
    np.subtract(scaled, e, out=e)
    return int(e.argmax())


def gumbel_argmax_full(row: npt.NDArray[np.float32], temperature: float, key: Key) -> int:
    """The definition: every token's noise is evaluated."""
    scaled = scale(row, checked_peak(row), temperature)
    return race(scaled, np.arange(row.size), key)


def gumbel_argmax(row: npt.NDArray[np.float32], temperature: float, key: Key) -> int:
    """The same token as ``gumbel_argmax_full``, evaluating only what could still win.

    A member i of group g has (l_i - peak) / T - log E_i <= (l_i - peak) / T - log m_g: its bound.
    The best value found among promising tokens, B, rules out every group, and then every token,
    with a bound below B. Rounding is monotone, and a margin covers the logarithm's error, so that
    nothing that could win is skipped.
    """
    if row.size <= _SMALL:
        return gumbel_argmax_full(row, temperature, key)
    tops = group_maxima(row)
    peak = checked_peak(tops)
    log_minima = group_minima(key, tops.size)
    np.log(log_minima, out=log_minima)
    bound = scale(tops, peak, temperature)
    bound -= log_minima

    leaders = np.argpartition(bound, -_LEADERS)[-_LEADERS:]
    ids, scaled, bounds = _bounded_members(row, leaders, peak, temperature, log_minima)
    promising = bounds >= bounds.max() - _PROMISING
    value = scaled[promising] - np.log(exponentials(key, ids[promising]))
    best = float(value.max())
    best -= 1e-9 * max(1.0, abs(best))

    groups = np.flatnonzero(bound >= best)
    ids, scaled, bounds = _bounded_members(row, groups, peak, temperature, log_minima)
    possible = bounds >= best
    ids = ids[possible]
    value = scaled[possible] - np.log(exponentials(key, ids))
    return int(ids[value == value.max()].min())  # the lowest id on a tie, as argmax


def _bounded_members(
    row: npt.NDArray[np.float32],
    groups: npt.NDArray[np.int64],
    peak: float,
    temperature: float,
    log_minima: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Ids, scaled logits and bounds [groups, members] of some groups; -inf beyond the row."""
    ids = group_members(groups, row.size)
    scaled = scale(row.take(ids, mode="clip"), peak, temperature)
    scaled[ids >= row.size] = -np.inf
    return ids, scaled, scaled - log_minima[groups, None]
