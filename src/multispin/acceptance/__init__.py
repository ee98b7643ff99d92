"""Acceptance rules: what of a draft is accepted, and which token comes next.

Pure functions over logits. Every rule commits tokens distributed exactly as the target's own.
"""

from multispin.acceptance.penalties import Context
from multispin.acceptance.proposal import Proposal, certain, propose
from multispin.acceptance.rules import choose, verify
from multispin.acceptance.verdict import Verdict

__all__ = ["Context", "Proposal", "Verdict", "certain", "choose", "propose", "verify"]
