"""Coupled: server and device draw with the same noise; accept while they drew the same.

The server's token at a position is a function of its logits and of (seed, position) alone, so
whatever was drafted, however far, and however often verification is repeated, it comes out the
same. It is a sample of the target's distribution because the noise is (Gumbel-max). The device
draws its draft by the same function of its own logits: the nearer the two distributions, the more
often the same noise picks the same token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multispin.acceptance.gumbel import gumbel_argmax, race
from multispin.acceptance.noise import Stream, derive_key
from multispin.acceptance.penalties import Context, adjusted
from multispin.acceptance.sampling import is_truncated, truncate
from multispin.acceptance.verdict import Verdict
from multispin.types import Logits, SamplingParams, TokenIds


def choose(
    row: npt.NDArray[np.float32],
    params: SamplingParams,
    seed: int,
    context: Context,
    drafted: TokenIds | None = None,
) -> int:
    """argmax over the surviving tokens of (l / T - log E), E of (seed, position, token)."""
    position = context.position + (0 if drafted is None else len(drafted))
    key = derive_key(seed, position, Stream.TARGET)
    row = adjusted(row, params, context, drafted)
    if not is_truncated(params):
        return gumbel_argmax(row, params.temperature, key)
    support = truncate(row, params)
    if support.ids.size == 1:
        return int(support.ids[0])
    return int(support.ids[race(support.scaled, support.ids, key)])


def verify(
    logits: Logits, draft: TokenIds, params: SamplingParams, seed: int, context: Context
) -> Verdict:
    """Accept while draft[j] is the server's own token.  logits [L + 1, vocab], draft [L]"""
    token = -1
    for j in range(len(logits)):
        token = choose(logits[j], params, seed, context, draft[:j])
        if j == len(draft) or token != draft[j]:
            return Verdict(j, token)
    raise AssertionError("rules.verify checked the number of rows")
