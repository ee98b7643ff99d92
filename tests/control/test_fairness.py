"""Minimum goodput and proportional fairness: kept where possible, refused with a number if not."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from random_cells import paper_cell, random_cell

from multispin.control import Infeasible, Objective, expected_tokens, solve
from multispin.control.fairness import shortest_lengths


def with_minimum(problem, least, kind="sum"):
    return replace(problem, objective=Objective(kind, least))


def most_equal(problem):
    """The largest minimum goodput that any plan gives, from the message of the refusal."""
    with pytest.raises(Infeasible) as caught:
        solve(with_minimum(problem, 1e9))
    return float(re.search(r"at most ([\d.e+-]+) tokens/s", str(caught.value)).group(1))


@pytest.mark.parametrize("seed", range(60))
def test_minimum_is_kept_and_costs_least(seed):
    """Against exhaustive search under the same minimum, at four fifths of what is possible."""
    rng = np.random.default_rng(seed)
    problem = random_cell(rng, int(rng.integers(1, 4)))
    least = 0.8 * most_equal(problem)
    fair = with_minimum(problem, least)
    plan, best = solve(fair), solve(fair, "exhaustive")
    assert (plan.expected_tokens / plan.round_s).min() >= least * (1 - 1e-9)
    assert plan.goodput_tokens_per_s >= best.goodput_tokens_per_s * (1 - 1e-3)
    assert plan.goodput_tokens_per_s <= solve(problem).goodput_tokens_per_s * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_refusal_names_the_true_limit(seed):
    rng = np.random.default_rng(seed)
    problem = random_cell(rng, int(rng.integers(1, 4)))
    limit = most_equal(problem)
    solve(with_minimum(problem, limit * (1 - 1e-4)))
    with pytest.raises(Infeasible, match="not reachable"):
        solve(with_minimum(problem, limit * (1 + 1e-4)), "exhaustive")


def test_a_policy_that_misses_the_minimum_says_who_falls_short():
    problem = paper_cell(np.random.default_rng(0), 10)
    problem = replace(problem, acceptance=np.linspace(0.2, 0.9, 10))
    limit = most_equal(problem)
    with pytest.raises(Infeasible, match=r"policy fixed gives device \d+ only"):
        solve(with_minimum(problem, limit * 0.99), "fixed")


def test_proportional_fairness_helps_the_weakest():
    problem = paper_cell(np.random.default_rng(1), 12)
    problem = replace(problem, acceptance=np.linspace(0.3, 0.95, 12))
    greedy = solve(problem)
    fair = solve(replace(problem, objective=Objective("proportional")))

    def logs(plan):
        return np.log(plan.expected_tokens / plan.round_s).sum()

    assert logs(fair) > logs(greedy)
    assert fair.goodput_tokens_per_s < greedy.goodput_tokens_per_s


def test_shortest_lengths_by_scan():
    rng = np.random.default_rng(0)
    problem = random_cell(rng, 6, max_draft_length=30)
    problem = replace(problem, acceptance=np.array([0.0, 0.3, 0.9, 0.99, 1.0, 0.6]))
    for round_s in (0.01, 0.5, 2.0, 7.0):
        found = shortest_lengths(problem, np.asarray(round_s), 1.5)
        for k, a in enumerate(problem.acceptance):
            enough = [
                n
                for n in range(problem.min_draft_length, 31)
                if expected_tokens(np.array([a]), np.array([n]))[0] >= 1.5 * round_s * (1 - 1e-9)
            ]
            assert found[k] == (enough[0] if enough else 31)
