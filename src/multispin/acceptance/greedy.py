"""Greedy: the target's token is its argmax; accept while the draft equals it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multispin.acceptance.gumbel import checked_peak
from multispin.acceptance.penalties import Context, adjusted
from multispin.acceptance.verdict import Verdict
from multispin.types import Logits, SamplingParams, TokenIds


def choose(
    row: npt.NDArray[np.float32],
    params: SamplingParams,
    context: Context,
    drafted: TokenIds | None = None,
) -> int:
    """argmax l, the lowest id on a tie."""
    row = adjusted(row, params, context, drafted)
    token = int(row.argmax())
    checked_peak(row[token : token + 1])
    return token


def verify(logits: Logits, draft: TokenIds, params: SamplingParams, context: Context) -> Verdict:
    """Accept while draft[j] = argmax of row j.  logits [L + 1, vocab], draft [L]

    Row by row, so that the rows after a rejection are spared; an argmax outweighs the loop.
    """
    token = -1
    for j in range(len(logits)):
        token = choose(logits[j], params, context, draft[:j])
        if j == len(draft) or token != draft[j]:
            return Verdict(j, token)
    raise AssertionError("rules.verify checked the number of rows")
