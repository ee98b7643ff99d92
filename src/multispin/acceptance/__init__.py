"""Acceptance rules: what of a draft is accepted, and which token comes next.

Pure functions over logits. Every rule commits tokens distributed exactly as the target's own.
"""

from multispin.acceptance.penalties import Context
from multispin.acceptance.proposal import PROPOSAL_TOTAL, Proposal, certain, propose
from multispin.acceptance.rules import choose, verify
from multispin.acceptance.verdict import Verdict

__all__ = [
    "PROPOSAL_TOTAL",
    "Context",
    "Proposal",
    "Verdict",
    "certain",
    "choose",
    "propose",
    "verify",
]
