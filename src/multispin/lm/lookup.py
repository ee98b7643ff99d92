"""Prompt lookup: a drafter without weights that copies what followed the same words before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multispin.errors import BadInput
from multispin.types import TokenIds


class Match(NamedTuple):
    ids: TokenIds  # [num_tokens], or [0] where nothing matched
    length: int  # tokens at the end of the context that stood there before


NO_MATCH = Match(np.zeros(0, np.int32), 0)


def lookup(context: TokenIds, num_tokens: int, *, max_ngram: int = 32, min_ngram: int = 1) -> Match:
    """Propose ``num_tokens`` tokens after ``context``, or none.

    The longest suffix of at most ``max_ngram`` and at least ``min_ngram`` tokens that occurred
    before is found, its most recent earlier occurrence taken, and what followed it proposed. A
    continuation that runs into the end of the context is taken as periodic.
    """
    if num_tokens < 0:
        raise BadInput("num_tokens", num_tokens, "must be 0 or more")
    if not 1 <= min_ngram <= max_ngram:
        raise BadInput("min_ngram", min_ngram, f"must be 1 to max_ngram = {max_ngram}")
    end = len(context) - 1  # index of the last token
    if end < 1 or num_tokens == 0:
        return NO_MATCH
    # Ends of earlier occurrences of the suffix, the suffix growing by one token per turn.
    ends = np.flatnonzero(context[:end] == context[end])
    length = 1
    while length < max_ngram:
        longer = ends[ends >= length]
        longer = longer[context[longer - length] == context[end - length]]
        if len(longer) == 0:
            break
        ends, length = longer, length + 1
    if len(ends) == 0 or length < min_ngram:
        return NO_MATCH
    match = int(ends[-1])
    period = end - match
    ids = np.asarray(context[match + 1 + np.arange(num_tokens) % period], np.int32)
    return Match(ids, length)
