"""The objectives: what a plan is worth to the cell, and the minimum that it owes each device.

Both objectives have the form value(U, T) with U = sum_k u(E[N_k]), rising in U, falling in T:

    sum            u = E[N]       value = U / T
    proportional   u = log E[N]   value = U - K log T = sum_k log(E[N_k] / T)     (Kelly 1997)

so one solver serves both: it needs u, the round at which a U breaks even with a value already
reached, and the price of time -(dvalue/dT)/(dvalue/dU).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multispin.control.deadline import AnyLengths, least_deadline
from multispin.control.problem import Floats, Lengths, Plan, Problem, expected_tokens
from multispin.errors import BadInput


class Infeasible(BadInput):
    """No plan (of this policy) gives every device the minimum goodput that was asked for."""


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


def worth(problem: Problem, lengths: AnyLengths, deadline_s: Floats | None = None) -> Floats:
    """The objective for lengths [..., K] with the best bandwidths for them; -inf below the minimum.

    ``deadline_s`` [...] is the least deadline, where the caller has it already.
    """
    if deadline_s is None:
        deadline_s = least_deadline(problem, lengths)
    round_s = deadline_s + problem.overhead_s(lengths)
    worth = value(problem, utility(problem, lengths).sum(axis=-1), round_s)
    least = problem.objective.min_goodput_tokens_per_s
    if least > 0:
        expected = expected_tokens(problem.acceptance, lengths)
        enough = expected.min(axis=-1) >= least * round_s * (1 - 1e-12)
        worth = np.where(enough, worth, -np.inf)
    return worth


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


def least_plan(problem: Problem, least: float) -> Lengths | None:
    """The shortest drafts that give every device ``least`` tokens/s, or None if nothing does.

    Longer drafts make the round longer, a longer round asks for longer drafts: iterated from the
    shortest this rises to the least fixed point, which lies below every feasible plan.
    """
    lengths = np.full(problem.num_devices, problem.min_draft_length, dtype=np.int64)
    while True:
        round_s = least_deadline(problem, lengths) + problem.overhead_s(lengths)
        longer = np.maximum(lengths, shortest_lengths(problem, round_s, least))
        if (longer > problem.max_draft_length).any():
            return None
        if (longer == lengths).all():
            return lengths
        lengths = longer


def require_minimum(problem: Problem) -> Lengths:
    """``least_plan`` for the problem's own minimum; Infeasible says what is reachable instead."""
    least = problem.objective.min_goodput_tokens_per_s
    if least == 0:
        return np.full(problem.num_devices, problem.min_draft_length, dtype=np.int64)
    lengths = least_plan(problem, least)
    if lengths is not None:
        return lengths
    low, high = 0.0, least
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if least_plan(problem, middle) is not None else (low, middle)
    raise Infeasible(
        "objective.min_goodput_tokens_per_s",
        f"{least:g}",
        f"not reachable: at most {low:.6g} tokens/s for every device at once, "
        f"{least - low:.3g} less than asked for; lower the minimum to {low:.4g} or raise the "
        "bandwidth",
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
