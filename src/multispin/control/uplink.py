"""How the uplink of one radio site is split between the replicas that serve its devices.

Replica r makes of a share b_r the goodput G_r(b_r), the more the less steeply: it gives its best
devices their bits first. Wanted is

    max sum_r G_r(b_r)   with   sum_r b_r <= B,   b_r >= f_r = (1/4) B n_r / sum_s n_s

for n_r devices. At the optimum G_r'(b_r), the price of one more unit on r, is the same everywhere,
or lower where a share is as small as it may be. So nobody has to know a G_r: replicas tell their
prices p_r, shares move to where the price is above the mean,

    b_r <- b_r min(max(sqrt(p_r / p), 1/c), c),   p = sum_r b_r p_r / sum_r b_r,

and are brought back to their sum. The optimum is where nothing moves. The root is for prices that
fall faster than 1/b, the bound c for those that jump. Plans are made of whole tokens: G_r is a
staircase, so that a price is taken over a wide span (SPAN), and where G_r is not concave the split
may rest at an optimum that others exceed. (Decomposition by resources: Palomar and Chiang 2006,
section III; prices that become equal: Kelly, Maulloo and Tan 1998.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEAST = 0.25  # of a replica's share by devices, that it keeps
MOST_CHANGE = 1.25  # c, per step
SPAN = 2.0  # a price is (G(2 b) - G(b / 2)) / (2 b - b / 2): a narrow one misses the steps
_NOTHING = 1e-9  # of the budget: no share at all


def split_uplink(
    budget: float, num_devices: npt.NDArray[np.int64], present: Floats, price: Floats
) -> Floats:
    """The next shares [R], which sum to the budget, or are 0 where nobody has a device.

    ``num_devices`` [R] on each replica, its ``present`` share [R] (0: it has none yet) and its
    ``price`` [R], goodput per unit. Who is new, or where no price says anything, has its share by
    devices at once. Shares and prices that are no positive numbers count as 0.
    """
    num_devices = np.maximum(num_devices, 0)
    if not num_devices.any():
        return np.zeros(len(num_devices))
    equal = budget * num_devices / num_devices.sum()
    share = np.minimum(_clean(present), budget)
    known = (share > _NOTHING * budget) & (num_devices > 0)
    price = np.where(known, _clean(price), 0.0)
    if not price.any():
        return np.asarray(equal)
    price /= price.max()
    mean = (share @ price) / share[known].sum()  # of the price
    moved = known * share * np.clip(np.sqrt(price / mean), 1 / MOST_CHANGE, MOST_CHANGE)
    left = budget - equal[~known].sum()
    return _at_least(LEAST * equal, np.where(known, moved * (left / moved.sum()), equal))


def _clean(values: Floats) -> Floats:
    return np.where(np.isfinite(values) & (values > 0), values, 0.0)


def _at_least(least: Floats, shares: Floats) -> Floats:
    """max(least, t shares) [R] with the t that leaves the sum as it is."""
    held = np.zeros(len(shares), np.bool_)
    while True:
        scale = (shares.sum() - least[held].sum()) / shares[~held].sum()
        short = ~held & (scale * shares < least)
        if not short.any():
            return np.where(held, least, scale * shares)
        held |= short
