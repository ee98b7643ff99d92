"""Rejection sampling of a draft: accept x with probability min(1, p(x) / q(x)).

Leviathan et al. (arXiv 2211.17192), Chen et al. (arXiv 2302.01318): on a rejection the correction
is drawn from norm(max(p - q, 0)), after acceptance throughout the bonus from p.

The server's randomness is a function of (seed, position, stream), so a repeated draft gets the
same verdict. That positions re-use their noise after a rollback is exact all the same: a position
is decided once, and decisions stop at the first rejection. What was drafted, but not decided,
beyond it says nothing about the noise of the decided positions, nor they about it: the noise of a
position is independent of that of all earlier ones, and of the choice of q, which depends on
earlier tokens only. DRAFT, ACCEPT, RESIDUAL and TARGET are separate streams, because the
acceptance test has to be independent of the draft, and the correction of both.

The rule trusts the device to have drawn the token from q by bits of which its choice of q knows
nothing. A device that lies distorts its own session's text, and no other's; greedy and coupled
trust nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multispin.acceptance import coupled
from multispin.acceptance.gumbel import checked_peak, gumbel_argmax, race, scale
from multispin.acceptance.noise import Key, Stream, derive_key, uniform_bits
from multispin.acceptance.penalties import Context, adjusted
from multispin.acceptance.proposal import PROPOSAL_TOTAL, Proposal, check_proposal
from multispin.acceptance.sampling import Support, is_truncated, total_weight, truncate
from multispin.acceptance.verdict import Verdict
from multispin.errors import BadInput
from multispin.types import Logits, SamplingParams, TokenIds


def verify(
    logits: Logits,
    draft: TokenIds,
    params: SamplingParams,
    seed: int,
    context: Context,
    *,
    proposals: Sequence[Proposal],
) -> Verdict:
    """The classical test.  logits [L + 1, vocab], draft [L], proposals [L]"""
    if len(proposals) != len(draft):
        raise BadInput("proposals", len(proposals), f"the draft has {len(draft)} tokens")
    num_tokens = logits.shape[1]
    drafted = draft.tolist()
    counts = [check_proposal(q, x, num_tokens) for q, x in zip(proposals, drafted, strict=True)]
    for j, (x, count, proposal) in enumerate(zip(drafted, counts, proposals, strict=True)):
        row = adjusted(logits[j], params, context, draft[:j])
        position = context.position + j
        u = (uniform_bits(seed, position, Stream.ACCEPT) >> 11) * 2.0**-53  # in [0, 1)
        u_q = u * (count / PROPOSAL_TOTAL)
        if is_truncated(params):
            support = truncate(row, params)
            z = float(support.weights.sum())
            # An empty sum, where truncation dropped x, is p(x) = 0.
            if u_q * z < float(support.weights[support.ids == x].sum()):
                continue
            key = derive_key(seed, position, Stream.RESIDUAL)
            return Verdict(j, _correct_listed(support, z, proposal, key))
        peak = checked_peak(row)
        z = total_weight(row, peak, params.temperature)
        if u_q * z < math.exp((float(row[x]) - peak) / params.temperature):
            continue
        key = derive_key(seed, position, Stream.RESIDUAL)
        return Verdict(j, _correct_whole(row, peak, z, params.temperature, proposal, key))
    bonus = coupled.choose(logits[len(draft)], params, seed, context, draft)
    return Verdict(len(draft), bonus)


def _correct_listed(support: Support, z: float, proposal: Proposal, key: Key) -> int:
    """A draw from norm(max(p - q, 0)) where p lives on a short list of tokens."""
    ids = support.ids
    slot = np.minimum(proposal.ids.searchsorted(ids), proposal.ids.size - 1)
    q = np.where(proposal.ids[slot] == ids, proposal.counts[slot], 0)
    residual = support.weights - q * (z / PROPOSAL_TOTAL)
    left = (residual > 0.0).nonzero()[0]
    if not left.size:  # p = q up to rounding, and u within rounding of 1
        return int(ids[race(support.scaled, ids, key)])
    ids = ids[left]
    return int(ids[race(np.log(residual[left]), ids, key)])


def _correct_whole(
    row: npt.NDArray[np.float32],
    peak: float,
    z: float,
    temperature: float,
    proposal: Proposal,
    key: Key,
) -> int:
    """The same where p lives on the whole vocabulary; writes to the row.

    Among the proposed ids the race is run with what q leaves of p, among all others with p.
    """
    ids = proposal.ids
    residual = np.exp(scale(row[ids], peak, temperature)) - proposal.counts * (z / PROPOSAL_TOTAL)
    if not row.flags.writeable:
        row = row.copy()
    row[ids] = -np.inf
    left = residual > 0.0
    ids, scaled = ids[left], np.log(residual[left])
    if row.max() > -np.inf:
        other = gumbel_argmax(row, temperature, key)
        ids = np.append(ids, other)
        scaled = np.append(scaled, scale(row[other : other + 1], peak, temperature))
    if not ids.size:  # p = q up to rounding, and u within rounding of 1
        return int(proposal.ids[proposal.counts.argmax()])
    return int(ids[race(scaled, ids, key)])
