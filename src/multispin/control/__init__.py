"""Who drafts how far and who gets which share of the uplink: pure mathematics, no I/O."""

from multispin.control.baselines import POLICIES, solve
from multispin.control.deadline import bandwidth_for
from multispin.control.fairness import Infeasible
from multispin.control.problem import Objective, Plan, Problem, Uplink, evaluate, expected_tokens

__all__ = [
    "POLICIES",
    "Infeasible",
    "Objective",
    "Plan",
    "Problem",
    "Uplink",
    "bandwidth_for",
    "evaluate",
    "expected_tokens",
    "solve",
]
