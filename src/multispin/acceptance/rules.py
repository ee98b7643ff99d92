"""The two questions put to a rule: which token would the target choose, and what of a draft holds.

Rows are logits before bias, penalties and temperature. Biased or penalised rows are changed in
place where they are writable: use each row once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multispin.acceptance import coupled, greedy, rejection
from multispin.acceptance.penalties import Context
from multispin.acceptance.proposal import Proposal
from multispin.acceptance.verdict import Verdict
from multispin.errors import BadInput
from multispin.types import AcceptanceRule, Logits, SamplingParams, TokenIds


def choose(
    row: npt.NDArray[np.float32],
    params: SamplingParams,
    rule: AcceptanceRule,
    seed: int,
    context: Context,
) -> int:
    """The token at ``context.position``, drawn from softmax(row) as ``params`` shape it.

    row: float32 [vocab]. What the server alone writes, and what a device drafts under greedy and
    coupled (under rejection: ``propose``). Equal to ``verify`` with an empty draft.
    """
    if _is_greedy(params, rule):
        return greedy.choose(row, params, context)
    return coupled.choose(row, params, seed, context)


def verify(
    logits: Logits,
    draft: TokenIds,
    params: SamplingParams,
    rule: AcceptanceRule,
    seed: int,
    context: Context,
    proposals: Sequence[Proposal] | None = None,
) -> Verdict:
    """How much of a draft is accepted, and the token after it.

    logits: float32 [L + 1, vocab], row j for absolute position ``context.position`` + j;
    draft: int32 [L]; proposals [L], under rejection above temperature 0 only. The committed
    tokens ``draft[:num_accepted], token`` are distributed as the target's own. A pure function:
    repeated, it answers the same. Rows after the first rejection are not looked at.
    """
    if logits.ndim != 2 or len(logits) != len(draft) + 1:
        raise BadInput("draft", f"{len(draft)} tokens", f"got logits of shape {logits.shape}")
    if _is_greedy(params, rule):
        return greedy.verify(logits, draft, params, context)
    if rule == "coupled":
        return coupled.verify(logits, draft, params, seed, context)
    return rejection.verify(logits, draft, params, seed, context, proposals=proposals or ())


def _is_greedy(params: SamplingParams, rule: AcceptanceRule) -> bool:
    if params.temperature == 0.0:
        return True
    if rule == "greedy":
        raise BadInput("temperature", params.temperature, "must be 0 under greedy; use coupled")
    return False
