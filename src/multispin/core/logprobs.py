"""Log-probabilities of the tokens that were chosen, and of the most likely ones in their place."""

from __future__ import annotations

import math
from typing import TypeAlias

from multispin.acceptance.sampling import top, total_weight
from multispin.types import Logits

# Of a chosen token, and of the most likely ones: pairs of id and log-probability.
RowLogprobs: TypeAlias = "tuple[float, list[tuple[int, float]]]"


def row_logprobs(logits: Logits, chosen: list[int], num_top: int) -> list[RowLogprobs]:
    """log p_i = l_i - log sum_j exp(l_j) of each row, in double precision.

    logits [n, vocab], as the model gave them; chosen [n]. The ``num_top`` most likely tokens come
    in the order of their probability, ties by smaller id.
    """
    rows = []
    for row, token in zip(logits, chosen, strict=True):
        peak = float(row.max())
        log_total = peak + math.log(total_weight(row, peak, 1.0))
        ids = top(row, 1.0, num_top).ids.tolist() if num_top else []
        rows.append((float(row[token]) - log_total, [(i, float(row[i]) - log_total) for i in ids]))
    return rows
