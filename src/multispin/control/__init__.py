"""Who drafts how far and who gets which share of the uplink: pure mathematics, no I/O."""

from multispin.control.deadline import bandwidth_for
from multispin.control.estimate import (
    AcceptanceEstimate,
    AcceptancePrior,
    DeviceEstimate,
    DevicePrior,
    VerificationCurve,
    VerificationFit,
)
from multispin.control.fairness import Infeasible
from multispin.control.outage import Outage, exact_outage, planned_outage
from multispin.control.policies import POLICIES, Policy, PolicyFailed, find_policy, solve
from multispin.control.problem import Objective, Plan, Problem, Uplink, evaluate, expected_tokens
from multispin.control.stop_and_wait import (
    StopAndWaitPlan,
    evaluate_stop_and_wait,
    solve_stop_and_wait,
    stop_and_wait_plans,
)
from multispin.control.window import WindowPlan, evaluate_window, solve_window

__all__ = [
    "POLICIES",
    "AcceptanceEstimate",
    "AcceptancePrior",
    "DeviceEstimate",
    "DevicePrior",
    "Infeasible",
    "Objective",
    "Outage",
    "Plan",
    "Policy",
    "PolicyFailed",
    "Problem",
    "StopAndWaitPlan",
    "Uplink",
    "VerificationCurve",
    "VerificationFit",
    "WindowPlan",
    "bandwidth_for",
    "evaluate",
    "evaluate_stop_and_wait",
    "evaluate_window",
    "exact_outage",
    "expected_tokens",
    "find_policy",
    "planned_outage",
    "solve",
    "solve_stop_and_wait",
    "solve_window",
    "stop_and_wait_plans",
]
