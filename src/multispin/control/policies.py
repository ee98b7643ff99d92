"""Policies by name: the built-in ones, and those that others have written.

A policy of one's own is a class with a method ``plan(problem) -> Plan``. It is named as
``module:Class``, or found under its name as an entry point of the group ``multispin.policies``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import NoReturn, Protocol

import numpy as np

from multispin.control.baselines import bandwidth_only, fixed, server_only
from multispin.control.exhaustive import exhaustive
from multispin.control.fairness import check_minimum, without_outage
from multispin.control.heterogeneous import heterogeneous
from multispin.control.homogeneous import homogeneous
from multispin.control.length_only import length_only
from multispin.control.outage_constrained import outage_constrained
from multispin.control.problem import Plan, Problem, evaluate
from multispin.errors import BadInput, MultispinError

ENTRY_POINTS = "multispin.policies"
ROUNDING = 1e-9  # relative, of the bandwidths' sum

Solver = Callable[[Problem], Plan]
POLICIES: MappingProxyType[str, Solver] = MappingProxyType(
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


class Policy(Protocol):
    """Who decides. Made once, without arguments, and asked for every plan of a process."""

    def plan(self, problem: Problem) -> Plan:
        """Draft lengths and bandwidths, as `evaluate` or `bandwidth_for` put them into a Plan.

        Lengths lie between the problem's least and longest, bandwidths sum to no more than it has.
        """
        ...


class PolicyFailed(BadInput):
    """A policy of somebody's own raised an error, or planned what is no plan."""


@dataclass(frozen=True)
class _Own:
    name: str
    policy: Policy

    def __call__(self, problem: Problem) -> Plan:
        try:
            plan = self.policy.plan(problem)
        except MultispinError:  # Infeasible: its way to say that there is none
            raise
        except Exception as error:
            self._fail(f"plan() raised {type(error).__name__}: {error}")
        self._check(problem, plan)
        # What a plan is worth is not for the policy to say.
        return evaluate(problem, plan.lengths, plan.bandwidths_hz)

    def _check(self, problem: Problem, plan: object) -> None:
        if not isinstance(plan, Plan):
            self._fail(f"plan() returned {type(plan).__name__}, not a Plan: end it with evaluate()")
        lengths, bandwidths = np.asarray(plan.lengths), np.asarray(plan.bandwidths_hz)
        least, longest = problem.min_draft_length, problem.max_draft_length
        if not lengths.shape == bandwidths.shape == (problem.num_devices,):
            self._fail(f"lengths and bandwidths must hold {problem.num_devices} numbers each")
        if lengths.min() < least or lengths.max() > longest:
            self._fail(f"draft lengths must lie between {least} and {longest}")
        if not (np.isfinite(bandwidths).all() and bandwidths.min() >= 0):
            self._fail("bandwidths must be finite numbers, 0 or more")
        if bandwidths.sum() > problem.bandwidth_hz * (1 + ROUNDING):
            self._fail(f"bandwidths sum to more than the cell's {problem.bandwidth_hz:g} Hz")
        if (bandwidths[lengths > 0] == 0).any():
            self._fail("who drafts needs some bandwidth")

    def _fail(self, reason: str) -> NoReturn:
        raise PolicyFailed("--policy", self.name, reason)


@functools.cache
def find_policy(name: str) -> Solver:
    """The policy of that name. Raises BadInput for one that is not there or is no policy."""
    if name in POLICIES:
        return POLICIES[name]
    found = _imported(name) if ":" in name else _entry_point(name)
    try:
        policy = found()
    except Exception as error:
        remedy = f"cannot be made without arguments: {type(error).__name__}: {error}"
        raise BadInput("--policy", name, remedy) from error
    if not callable(getattr(policy, "plan", None)):
        raise BadInput("--policy", name, "is no policy: it has no method plan(problem)")
    return _Own(name, policy)


def _imported(name: str) -> Callable[[], Policy]:
    module, _, attribute = name.partition(":")
    if (here := os.getcwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, here)
    try:
        found: Callable[[], Policy] = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        remedy = f"cannot be imported as MODULE:CLASS: {type(error).__name__}: {error}"
        raise BadInput("--policy", name, remedy) from error
    return found


def _entry_point(name: str) -> Callable[[], Policy]:
    installed = entry_points(group=ENTRY_POINTS)
    if name in installed.names:
        try:
            found: Callable[[], Policy] = installed[name].load()
        except Exception as error:
            remedy = f"its entry point cannot be loaded: {type(error).__name__}: {error}"
            raise BadInput("--policy", name, remedy) from error
        return found
    known = [*POLICIES, *installed.names]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadInput("--policy", name, f"{hint}choose one of {', '.join(known)}, or MODULE:CLASS")


def solve(problem: Problem, policy: str = "heterogeneous") -> Plan:
    """The plan of the policy of that name.

    Raises BadInput for an unknown name, Infeasible where the plan misses the objective's minimum
    or, under ``outage-constrained``, none keeps its outage; PolicyFailed for what is no plan. Other
    policies leave the outage alone.
    """
    chosen = find_policy(policy)
    if chosen is not outage_constrained:
        problem = without_outage(problem)
    return check_minimum(problem, policy, chosen(problem))
