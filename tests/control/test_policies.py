"""Policies by name, and policies of others: found, checked, and not believed."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest
from random_cells import random_cell

from multispin.control import POLICIES, PolicyFailed, evaluate, find_policy, policies, solve
from multispin.errors import BadInput

HALF = """
import numpy as np
from multispin.control import bandwidth_for

class Half:
    def __init__(self):
        self.num_plans = 0

    def plan(self, problem):
        self.num_plans += 1
        return bandwidth_for(problem, np.full(problem.num_devices, problem.max_draft_length // 2))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module of policies into the folder that commands are run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    find_policy.cache_clear()
    yield lambda text, name="mine": (tmp_path / f"{name}.py").write_text(text)
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)
    find_policy.cache_clear()


@pytest.fixture
def problem():
    return random_cell(np.random.default_rng(3), 4)


def test_a_class_named_by_module_plans(own, problem):
    own(HALF)
    plan = solve(problem, "mine:Half")
    assert plan.lengths.tolist() == [problem.max_draft_length // 2] * 4
    assert plan.goodput_tokens_per_s <= solve(problem, "exhaustive").goodput_tokens_per_s * 1.0001


def test_it_is_made_once_and_may_remember(own, problem):
    own(HALF)
    solve(problem, "mine:Half")
    solve(problem, "mine:Half")
    assert find_policy("mine:Half").policy.num_plans == 2


def test_an_entry_point_is_found_by_its_name(own, problem, monkeypatch):
    own(HALF)
    monkeypatch.syspath_prepend(".")
    installed = EntryPoints([EntryPoint("half", "mine:Half", policies.ENTRY_POINTS)])
    monkeypatch.setattr(policies, "entry_points", lambda group: installed.select(group=group))
    assert solve(problem, "half").lengths.tolist() == [problem.max_draft_length // 2] * 4
    with pytest.raises(BadInput, match="did you mean half"):
        find_policy("hall")


def test_an_entry_point_does_not_replace_a_built_in(own, monkeypatch):
    installed = EntryPoints([EntryPoint("fixed", "mine:Half", policies.ENTRY_POINTS)])
    monkeypatch.setattr(policies, "entry_points", lambda group: installed.select(group=group))
    assert find_policy("fixed") is POLICIES["fixed"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere:Half", "No module named 'nowhere'"),
        ("mine:Hal", "has no attribute 'Hal'"),
        ("broken:Half", "SyntaxError"),
        ("mine:np", "has no method plan|cannot be made"),
        ("mine:", "cannot be imported"),
        (":Half", "cannot be imported"),
        ("heterogenous", "did you mean heterogeneous"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(own, name, says):
    own(HALF)
    own("class Half(:", "broken")
    with pytest.raises(BadInput, match=says) as refused:
        find_policy(name)
    assert refused.value.field == "--policy"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plan, p: None, "not a Plan"),
        (lambda plan, p: 1 / 0, "ZeroDivisionError"),
        (lambda plan, p: replace(plan, lengths=plan.lengths[:-1]), "must hold 4"),
        (lambda plan, p: replace(plan, lengths=plan.lengths - 99), "must lie between"),
        (lambda plan, p: replace(plan, lengths=plan.lengths + 99), "must lie between"),
        (lambda plan, p: replace(plan, bandwidths_hz=1.01 * plan.bandwidths_hz), "sum to more"),
        (lambda plan, p: replace(plan, bandwidths_hz=-plan.bandwidths_hz), "0 or more"),
        (lambda plan, p: replace(plan, bandwidths_hz=np.nan * plan.bandwidths_hz), "finite"),
        (lambda plan, p: replace(plan, bandwidths_hz=0 * plan.bandwidths_hz), "needs some"),
    ],
)
def test_what_is_no_plan_is_refused(problem, monkeypatch, change, says):
    class Wrong:
        def plan(self, problem):
            lengths = np.full(4, 2)
            shares = np.full(4, problem.bandwidth_hz / 4)
            return change(evaluate(problem, lengths, shares), problem)

    own = policies._Own("wrong", Wrong())
    with pytest.raises(PolicyFailed, match=says):
        own(problem)


def test_what_a_plan_is_worth_is_computed_anew(problem):
    class Boastful:
        def plan(self, problem):
            plan = evaluate(problem, np.full(4, 2), np.full(4, problem.bandwidth_hz / 4))
            return replace(plan, goodput_tokens_per_s=1e9, round_s=1e-9)

    honest = evaluate(problem, np.full(4, 2), np.full(4, problem.bandwidth_hz / 4))
    found = policies._Own("boastful", Boastful())(problem)
    assert found.goodput_tokens_per_s == honest.goodput_tokens_per_s
    assert found.round_s == honest.round_s
