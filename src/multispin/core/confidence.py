"""How likely a drafted token is to be accepted, from the drafter's own confidence in it.

A drafter's probability of the token that it drew is sorted into eight levels, three bits on the
wire: level k holds the confidences from 1 - 2^-k up to 1 - 2^-(k+1), because what matters is how
seldom a confident drafter errs. What a level is worth is learned from verdicts:

    a_k = (A_k + w c_k) / (A_k + R_k + w)

with A_k, R_k the tokens of the level that were accepted and rejected, each counting half as much
after HALF_LIFE further ones, c_k = 1 - 2^-(k+1/2) the level's own claim and w its weight. Device
and server learn from the same verdicts, the one to know when to stop drafting, the other to choose
what to verify; what a device claims is worth no more than its tokens turn out to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import log2

import numpy as np
import numpy.typing as npt

from multispin.wire.frames import LEVEL_BITS

NUM_LEVELS = 1 << LEVEL_BITS
HALF_LIFE = 64.0  # judged tokens of a level
KEEP = 0.5 ** (1.0 / HALF_LIFE)  # of what was known, with every further one
CLAIM_WEIGHT = 4.0  # tokens; as much as a claim is believed

Levels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def level_of(confidences: npt.NDArray[np.float32]) -> Levels:
    """Level of each probability: min(floor(-log2(1 - c)), 7)."""
    least = 2.0**-NUM_LEVELS  # few at a time: NumPy would take longer
    doubts = [min(max(1.0 - c, least), 1.0) for c in confidences.tolist()]
    return np.array([min(int(-log2(doubt)), NUM_LEVELS - 1) for doubt in doubts], np.uint8)


class Calibration:
    """a_k of one device's drafter on one server's target.

    ``claim`` stands for every level's own where it is given.
    """

    def __init__(self, claim: float | None = None) -> None:
        claims = [1.0 - 2.0 ** -(level + 0.5) for level in range(NUM_LEVELS)]
        self._claims = claims if claim is None else [claim] * NUM_LEVELS
        self._accepted = [0.0] * NUM_LEVELS
        self._judged = [0.0] * NUM_LEVELS
        self.acceptance = np.array(self._claims, np.float64)  # a_k [levels]

    def observe(self, levels: Iterable[int], num_accepted: int) -> None:
        """A draft with these levels was verified; behind the first rejection nothing was judged."""
        for index, level in enumerate(islice(levels, num_accepted + 1)):
            self.judge(level, index < num_accepted)

    def judge(self, level: int, is_accepted: bool) -> None:
        """One token of a level was accepted or rejected."""
        self._accepted[level] = KEEP * self._accepted[level] + is_accepted
        self._judged[level] = KEEP * self._judged[level] + 1.0
        accepted = self._accepted[level] + CLAIM_WEIGHT * self._claims[level]
        self.acceptance[level] = accepted / (self._judged[level] + CLAIM_WEIGHT)


def survivals(
    calibrations: Sequence[Calibration], levels: Levels, num_drafted: npt.NDArray[np.int64]
) -> Floats:
    """P(tokens 0..j of a session's draft all accepted), session after session [len(levels)].

    ``num_drafted`` [K] of the ``levels`` belong to each of the K sessions.
    """
    owner = np.repeat(np.arange(len(calibrations)), num_drafted)
    tables = np.array([calibration.acceptance for calibration in calibrations])
    logs = np.concatenate([[0.0], np.cumsum(np.log(tables[owner, levels]))])
    begins = np.cumsum(num_drafted) - num_drafted
    return np.asarray(np.exp(logs[1:] - logs[begins[owner]]), np.float64)
