"""What every plan is compared with."""

from __future__ import annotations

import numpy as np

from multispin.control.deadline import bandwidth_for
from multispin.control.length_only import equal_shares
from multispin.control.problem import Lengths, Plan, Problem, evaluate

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
