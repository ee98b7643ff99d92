"""The policies by name: what every plan is compared with, and the one that it should be."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from multispin.control.deadline import bandwidth_for
from multispin.control.exhaustive import exhaustive
from multispin.control.fairness import check_minimum, without_outage
from multispin.control.heterogeneous import heterogeneous
from multispin.control.homogeneous import homogeneous
from multispin.control.length_only import equal_shares, length_only
from multispin.control.outage_constrained import outage_constrained
from multispin.control.problem import Lengths, Plan, Problem, evaluate
from multispin.errors import BadInput

FIXED_LENGTH = 8
"""Draft length of the policies that do not choose one (the paper's Fixed)."""


def _same(problem: Problem, length: int) -> Lengths:
    clamped = min(max(length, problem.min_draft_length), problem.max_draft_length)
    return np.full(problem.num_devices, clamped, dtype=np.int64)


def bandwidth_only(problem: Problem) -> Plan:
    """Length 8, bandwidth optimised."""
    return bandwidth_for(problem, _same(problem, FIXED_LENGTH))


def fixed(problem: Problem) -> Plan:
    """Length 8, equal bandwidth."""
    return evaluate(problem, _same(problem, FIXED_LENGTH), equal_shares(problem))


def server_only(problem: Problem) -> Plan:
    """Length 0 (or the minimum): the server generates alone, one token a device and round."""
    return bandwidth_for(problem, _same(problem, 0))


POLICIES: MappingProxyType[str, Callable[[Problem], Plan]] = MappingProxyType(
    {
        "heterogeneous": heterogeneous,
        "homogeneous": homogeneous,
        "length-only": length_only,
        "bandwidth-only": bandwidth_only,
        "fixed": fixed,
        "server-only": server_only,
        "exhaustive": exhaustive,
        "outage-constrained": outage_constrained,
    }
)


def solve(problem: Problem, policy: str = "heterogeneous") -> Plan:
    """The plan of the policy of that name.

    Raises BadInput for an unknown name, Infeasible where the plan misses the objective's minimum
    or, under ``outage-constrained``, none keeps its outage. Other policies leave the outage alone.
    """
    chosen = POLICIES.get(policy)
    if chosen is None:
        near = difflib.get_close_matches(policy, POLICIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput("--policy", policy, f"{hint}choose one of {', '.join(POLICIES)}")
    if chosen is not outage_constrained:
        problem = without_outage(problem)
    return check_minimum(problem, policy, chosen(problem))
