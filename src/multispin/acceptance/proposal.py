"""What a device under the rejection rule sends with a token: the distribution it drew it from."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.acceptance.noise import Stream, uniform_bits
from multispin.acceptance.penalties import Context, adjusted
from multispin.acceptance.sampling import Support, is_truncated, top, truncate
from multispin.errors import BadInput
from multispin.types import SamplingParams, TokenIds

TOTAL_BITS: Final = 16
PROPOSAL_TOTAL: Final = 1 << TOTAL_BITS


class Proposal(NamedTuple):
    """q(ids[i]) = counts[i] / 2^16, zero elsewhere.

    ``ids`` int32 [n] strictly ascending, ``counts`` uint32 [n], each at least 1, 2^16 in all.
    """

    ids: TokenIds
    counts: npt.NDArray[np.uint32]


def certain(token: int) -> Proposal:
    """The proposal of a deterministic drafter such as prompt lookup: all mass on one token."""
    return Proposal(np.array([token], dtype=np.int32), np.array([PROPOSAL_TOTAL], dtype=np.uint32))


def propose(
    row: npt.NDArray[np.float32],
    params: SamplingParams,
    seed: int,
    context: Context,
    top_n: int,
) -> tuple[int, Proposal]:
    """Draw a draft token from the top n tokens of the device's distribution, as quantised.

    The draw is from the very integers that are sent, by 16 uniform bits: truncation and rounding
    cost a little acceptance, never exactness.
    """
    if top_n < 1:
        raise BadInput("top_n", top_n, "must be 1 or more tokens")
    row = adjusted(row, params, context)
    if params.temperature == 0.0:
        token = int(row.argmax())
        return token, certain(token)
    n = min(top_n, PROPOSAL_TOTAL)
    if is_truncated(params):
        support = truncate(row, params).first(n)
    else:
        support = top(row, params.temperature, n)
    proposal = _quantised(support)
    drawn = uniform_bits(seed, context.position, Stream.DRAFT) >> (64 - TOTAL_BITS)
    index = int(proposal.counts.cumsum().searchsorted(drawn, side="right"))
    return int(proposal.ids[index]), proposal


def _quantised(support: Support) -> Proposal:
    """Counts of at least 1 that sum to 2^16: one each, the rest by rounding the cumulated mass."""
    order = support.ids.argsort()
    cumulated = support.weights[order].cumsum()
    cumulated *= (PROPOSAL_TOTAL - order.size) / cumulated[-1]
    borders = np.rint(cumulated).astype(np.uint32)
    counts = np.ones(order.size, dtype=np.uint32)
    counts += borders
    counts[1:] -= borders[:-1]
    return Proposal(support.ids[order].astype(np.int32), counts)


def check_proposal(proposal: Proposal, drafted: int, num_tokens: int) -> int:
    """The drafted token's count; BadInput unless this is a distribution that could draw it."""
    ids, counts = proposal
    if ids.ndim != 1 or ids.shape != counts.shape or not ids.size:
        raise BadInput("proposal", f"{ids.shape} ids", "needs as many counts as ids, at least one")
    if ids[0] < 0 or ids[-1] >= num_tokens or (ids[1:] <= ids[:-1]).any():
        raise BadInput("proposal", "ids", f"must ascend strictly within 0 to {num_tokens - 1}")
    if counts.min() < 1 or counts.sum(dtype=np.int64) != PROPOSAL_TOTAL:
        raise BadInput("proposal", "counts", f"must each be 1 or more and sum to {PROPOSAL_TOTAL}")
    index = int(ids.searchsorted(drafted))
    if index == ids.size or ids[index] != drafted:
        raise BadInput("draft", drafted, "must be one of the ids of its proposal")
    return int(counts[index])
