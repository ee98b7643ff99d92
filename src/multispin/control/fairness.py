"""The objectives: what a plan is worth to the cell, and what it owes each device.

Both objectives have the form value(U, T) with U = sum_k u(E[N_k]), rising in U, falling in T:

    sum            u = E[N]       value = U / T
    proportional   u = log E[N]   value = U - K log T = sum_k log(E[N_k] / T)     (Kelly 1997)

so one solver serves both: it needs u, the round at which a U breaks even with a value already
reached, and the price of time -(dvalue/dT)/(dvalue/dU).

What is owed has one form as well: device k bears rounds up to tau_k(L_k), which never falls with L,

    minimum goodput g   tau = E[N] / g
    outage              tau = D over the rounds that L needs      (outage.py)

and a plan keeps its debts iff T <= min_k tau_k(L_k).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from multispin.control.deadline import AnyLengths, least_deadline
from multispin.control.problem import (
    Floats,
    Lengths,
    Objective,
    Outage,
    Plan,
    Problem,
    expected_tokens,
)
from multispin.errors import BadInput

_ROUNDING = 1 + 1e-12


class Infeasible(BadInput):
    """No plan (of this policy) gives every device what was asked for."""


def utility(problem: Problem, lengths: AnyLengths) -> Floats:
    """u(E[N_k]) for lengths [..., K] -> [..., K]."""
    expected = expected_tokens(problem.acceptance, lengths)
    return expected if problem.objective.kind == "sum" else np.log(expected)


def value(problem: Problem, total_utility: Floats, round_s: Floats) -> Floats:
    """The objective at U [...] and T [...]: tokens/s, or the sum of log(tokens/s)."""
    if problem.objective.kind == "sum":
        return total_utility / round_s
    return np.asarray(total_utility - problem.num_devices * np.log(round_s))


def break_even_round_s(problem: Problem, total_utility: Floats, best: float) -> Floats:
    """The T at which U is worth exactly ``best``: a plan improves iff its round is shorter."""
    if problem.objective.kind == "sum":
        return total_utility / best
    return np.exp((total_utility - best) / problem.num_devices)


def time_price(problem: Problem, best: float, round_s: float) -> float:
    """Utility that one more second of round must bring to be worth it: G, or K/T."""
    return best if problem.objective.kind == "sum" else problem.num_devices / round_s


def worth(problem: Problem, lengths: Lengths, deadline_s: Floats | None = None) -> Floats:
    """The objective for lengths [..., K] with the best bandwidths; -inf where less than is owed.

    ``deadline_s`` [...] is the least deadline, where the caller has it already.
    """
    if deadline_s is None:
        deadline_s = least_deadline(problem, lengths)
    round_s = deadline_s + problem.overhead_s(lengths)
    worth = value(problem, utility(problem, lengths).sum(axis=-1), round_s)
    if problem.objective.owes:
        longest_s = bearable_round_s(problem, lengths).min(axis=-1)
        worth = np.where(round_s <= longest_s * _ROUNDING, worth, -np.inf)
    return worth


def bearable_round_s(problem: Problem, lengths: Lengths, devices: Lengths | None = None) -> Floats:
    """tau: the longest round in which a device with that length gets what it is owed; inf: any.

    Lengths are [..., K], or [M] of these ``devices`` [M].
    """
    if devices is None:
        devices = np.arange(problem.num_devices)
    table = problem.outage_round_s
    longest_s = table[np.minimum(lengths, len(table) - 1), devices]
    least = problem.objective.min_goodput_tokens_per_s
    if least > 0:
        expected = expected_tokens(problem.acceptance[devices], lengths)
        longest_s = np.minimum(longest_s, expected / least)
    return longest_s


class Valued(NamedTuple):
    """Plans by their lengths [..., K], with their least deadlines and what they are worth [...]."""

    lengths: Lengths
    deadline_s: Floats
    value: Floats

    def row(self, index: int) -> Valued:
        return Valued(self.lengths[index], self.deadline_s[index], self.value[index])

    def best(self) -> Valued:
        return self.row(int(self.value.argmax()))


def valued(problem: Problem, lengths: Lengths, near: Floats | None = None) -> Valued:
    """``worth`` of [..., K] lengths; ``near`` is what ``least_deadline`` may start from."""
    deadline = least_deadline(problem, lengths, near)
    return Valued(lengths, deadline, worth(problem, lengths, deadline))


def plan_value(problem: Problem, plan: Plan) -> float:
    """The objective of a finished plan."""
    total = utility(problem, plan.lengths).sum(axis=-1)
    return float(value(problem, total, np.asarray(plan.round_s)))


def shortest_lengths(problem: Problem, round_s: Floats, least: float) -> Lengths:
    """Smallest L_k in the limits with E[N_k] >= least T: T [...] -> [..., K]; max + 1 where none.

    From (1 - a^(L+1))/(1 - a) >= m: L = ceil(log(1 - m (1 - a)) / log a) - 1.
    """
    need = least * np.asarray(round_s)[..., None] * (1 - 1e-13)
    a = problem.acceptance
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.log1p(-need * (1.0 - a)) / np.log(a) - 1.0
    exact = np.where(a == 1.0, need - 1.0, exact)
    exact = np.where(need <= 1.0, 0.0, np.where(np.isnan(exact), np.inf, exact))
    top = problem.max_draft_length + 1
    lengths = np.ceil(np.clip(exact - 1e-9, problem.min_draft_length, top))
    return np.asarray(lengths, dtype=np.int64)


def outage_lengths(problem: Problem, round_s: Floats) -> Lengths:
    """Smallest L_k that keep the outage in rounds T [...] -> [..., K]; max + 1 where none."""
    round_s = np.asarray(round_s)[..., None]
    lengths = np.zeros((*round_s.shape[:-1], problem.num_devices), dtype=np.int64)
    for longest_s in problem.outage_round_s:  # of length 0, 1, ...
        lengths += round_s > longest_s * _ROUNDING
    is_hopeless = lengths == len(problem.outage_round_s)
    lengths = np.where(is_hopeless, problem.max_draft_length + 1, lengths)
    return np.maximum(lengths, problem.min_draft_length)


def owed_lengths(problem: Problem, round_s: Floats) -> Lengths:
    """Smallest L_k that give device k what it is owed in rounds T [...] -> [..., K]; or max + 1."""
    lengths = shortest_lengths(problem, round_s, problem.objective.min_goodput_tokens_per_s)
    if problem.objective.outage is not None:
        lengths = np.maximum(lengths, outage_lengths(problem, round_s))
    return lengths


def least_plan(problem: Problem) -> Lengths | None:
    """The shortest drafts that give every device what it is owed, or None if nothing does.

    Longer drafts make the round longer, a longer round asks for longer drafts: iterated from the
    shortest this rises to the least fixed point, which lies below every feasible plan.
    """
    lengths = np.full(problem.num_devices, problem.min_draft_length, dtype=np.int64)
    while True:
        round_s = least_deadline(problem, lengths) + problem.overhead_s(lengths)
        longer = np.maximum(lengths, owed_lengths(problem, round_s))
        if (longer > problem.max_draft_length).any():
            return None
        if (longer == lengths).all():
            return lengths
        lengths = longer


def require_minimum(problem: Problem) -> Lengths:
    """``least_plan``; Infeasible says what is reachable instead."""
    if not problem.objective.owes:
        return np.full(problem.num_devices, problem.min_draft_length, dtype=np.int64)
    lengths = least_plan(problem)
    if lengths is None:
        raise _too_little_goodput(problem) or _too_often_late(problem)
    return lengths


def without_outage(problem: Problem) -> Problem:
    """The same cell, owing nobody tokens by a deadline."""
    if problem.objective.outage is None:
        return problem
    return replace(problem, objective=replace(problem.objective, outage=None))


def _too_little_goodput(problem: Problem) -> Infeasible | None:
    """The error where the minimum goodput alone, without an outage, is out of reach."""
    least = problem.objective.min_goodput_tokens_per_s

    def reaches(goodput: float) -> bool:
        objective = Objective(min_goodput_tokens_per_s=goodput)
        return least_plan(replace(problem, objective=objective)) is not None

    if reaches(least):
        return None
    low, high = 0.0, least
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return Infeasible(
        "objective.min_goodput_tokens_per_s",
        f"{least:g}",
        f"not reachable: at most {low:.6g} tokens/s for every device at once, "
        f"{least - low:.3g} less than asked for; lower the minimum to {low:.4g} or raise the "
        "bandwidth",
    )


def _too_often_late(problem: Problem) -> Infeasible:
    """The error where the outage is out of reach: fewer tokens, or a later deadline, that are not.

    With n whole rounds by the deadline n tokens are certain.
    """
    asked = problem.objective.outage
    assert asked is not None

    def reaches(outage: Outage) -> bool:
        objective = replace(problem.objective, outage=outage)
        return least_plan(replace(problem, objective=objective)) is not None

    low, high = 0, asked.tokens
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reaches(replace(asked, tokens=middle)) else (low, middle)
    soon, late = asked.deadline_s, asked.deadline_s
    while not reaches(replace(asked, deadline_s=late)):
        soon, late = late, 2 * late
    while late - soon > 1e-6 * late:
        middle_s = (soon + late) / 2
        is_enough = reaches(replace(asked, deadline_s=middle_s))
        soon, late = (soon, middle_s) if is_enough else (middle_s, late)
    return Infeasible(
        "objective.outage_tokens",
        asked.tokens,
        f"not reachable in {asked.deadline_s:g} s with an outage of {asked.max_probability:g}: at "
        f"most {low} for every device at once, or {asked.tokens} in {late * 1.001:.4g} s; lower "
        "outage_tokens, raise outage_deadline_s or raise the bandwidth",
    )


def check_minimum(problem: Problem, policy: str, plan: Plan) -> Plan:
    """The plan itself, or Infeasible naming the device that falls short under this policy."""
    least = problem.objective.min_goodput_tokens_per_s
    goodput = plan.expected_tokens / plan.round_s
    worst = int(goodput.argmin())
    if goodput[worst] < least * (1 - 1e-9):
        raise Infeasible(
            "objective.min_goodput_tokens_per_s",
            f"{least:g}",
            f"policy {policy} gives device {worst} only {goodput[worst]:.6g} tokens/s, "
            f"{least - goodput[worst]:.3g} too few; lower the minimum or choose another policy",
        )
    return plan
