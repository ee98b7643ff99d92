"""Curves over a sweep: the same draws at every point, means and standard errors over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from multispin.control import Problem, solve
from multispin.sim.reproduce.paper import Draw, Setting
from multispin.sim.reproduce.result import Curve, Kind
from multispin.sim.rounds import simulate_rounds

Points: TypeAlias = Sequence[tuple[float, Setting]]  # what stands at the axis, and its cell
Rule: TypeAlias = Callable[[Problem], float]  # goodput
Tell: TypeAlias = Callable[[str], None]  # what is being computed


def by_policy(policy: str) -> Rule:
    return lambda problem: solve(problem, policy).goodput_tokens_per_s


def planned(points: Points, draws: Sequence[Draw], rules: Mapping[str, Rule]) -> list[Curve]:
    """A curve for each rule, by label, when the acceptance of every prompt is known."""

    def goodputs(setting: Setting, draw: Draw) -> list[float]:
        problem = setting.cell(draw).problem
        return [rule(problem) for rule in rules.values()]

    return averaged("planned", points, draws, list(rules), goodputs)


def simulated(
    points: Points,
    draws: Sequence[Draw],
    policies: Mapping[str, str],
    num_rounds: int,
    *,
    knows_prompts: bool = True,
) -> list[Curve]:
    """A curve for each policy, by label: so many rounds of each draw."""

    def goodputs(setting: Setting, draw: Draw) -> list[float]:
        cell = setting.cell(draw, knows_prompts=knows_prompts)
        traces = [simulate_rounds(cell, p, num_rounds, draw.seed) for p in policies.values()]
        return [trace.num_tokens / trace.simulated_s for trace in traces]

    return averaged("simulated", points, draws, list(policies), goodputs)


def averaged(
    kind: Kind,
    points: Points,
    draws: Sequence[Draw],
    labels: Sequence[str],
    goodputs: Callable[[Setting, Draw], Sequence[float]],
) -> list[Curve]:
    """``goodputs`` gives a number for each label."""
    samples = np.array([[goodputs(setting, draw) for draw in draws] for _, setting in points])
    xs = tuple(x for x, _ in points)
    return [Curve(label, kind, xs, samples[:, :, i]) for i, label in enumerate(labels)]
