"""Policies are compared by one and the same model, that of the server's mode."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from multispin.api.dashboard_plans import LEFT_OUT, compare
from multispin.control import POLICIES, VerificationFit, evaluate_stop_and_wait, evaluate_window
from multispin.core.planning import CellView
from multispin.types import Mode

LENGTHS = np.array([3, 0, 6, 2])
ACCEPTANCE = np.array([0.8, 0.9, 0.6, 0.0])  # the last has no drafter


def view(**fields: object) -> CellView:
    values: dict[str, object] = {
        "draft_s_per_token": np.array([0.01, 0.005, 0.02, 0.01]),
        "acceptance": ACCEPTANCE,
        "survival": ACCEPTANCE[:, None] ** np.arange(1, 17),
        "round_trip_s": np.array([0.02, 0.03, 0.05, 0.02]),
        "spectral_efficiency": np.ones(4),
        "lengths": LENGTHS,
        "bits_per_token": np.full(4, 20.0),
        "bits_per_draft": np.full(4, 600.0),
        "budget": 1e5,
        "fit": VerificationFit(0.06, 0.001, 0.0005),
        "least_share": 0.97,
    }
    return CellView(**{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", get_args(Mode))
def test_every_policy_is_there_and_none_beats_what_is_optimal(mode: Mode) -> None:
    cell = view()
    found = compare(cell, mode, [7, 5, 9, 11])
    in_force, *others = found.plans
    assert [plan.policy for plan in others] == [name for name in POLICIES if name not in LEFT_OUT]
    assert in_force.policy is None and in_force.lengths == [0, 3, 6]
    assert found.devices == [5, 7, 9]
    by_name = {plan.policy: plan for plan in others}
    alone = 4 / cell.problem.base_round_s
    assert by_name["server-only"].goodput_tokens_per_s == pytest.approx(alone, abs=0.01)
    best = by_name["heterogeneous"]
    assert not best.harms
    harmless = [p.goodput_tokens_per_s for p in found.plans if not p.harms and p.fits]
    assert best.goodput_tokens_per_s >= 0.96 * max(harmless)  # in window it is found by search


def test_the_plan_in_force_is_judged_by_the_model_of_the_mode() -> None:
    cell = view()
    [window, *_] = compare(cell, "window", list(range(4))).plans
    expected = evaluate_window(cell.problem, cell.survival, cell.round_trip_s, LENGTHS)
    assert window.goodput_tokens_per_s == pytest.approx(expected.goodput_tokens_per_s, abs=0.01)
    [waiting, *_] = compare(cell, "stop-and-wait", list(range(4))).plans
    own = evaluate_stop_and_wait(cell.problem, LENGTHS, cell.round_trip_s, least_share=0.0)
    assert waiting.goodput_tokens_per_s == pytest.approx(own.goodput_tokens_per_s, abs=0.01)


@pytest.mark.parametrize("mode", ["window", "stop-and-wait"])
def test_the_same_lengths_are_worth_the_same(mode: Mode) -> None:
    plans = compare(view(lengths=np.full(4, 8)), mode, list(range(4))).plans
    by_name = {plan.policy: plan for plan in plans}
    assert by_name["fixed"].lengths == by_name[None].lengths
    assert by_name["fixed"].goodput_tokens_per_s == by_name[None].goodput_tokens_per_s


@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_slows_a_device_down_is_marked(mode: Mode) -> None:
    """Long drafts of which nothing is accepted, where rows are dear."""
    cell = view(
        acceptance=np.full(4, 0.02),
        survival=np.full(4, 0.02)[:, None] ** np.arange(1, 17),
        draft_s_per_token=np.full(4, 0.01),
        fit=VerificationFit(0.06, 0.001, 0.02),
        lengths=np.full(4, 16),
    )
    by_name = {plan.policy: plan for plan in compare(cell, mode, list(range(4))).plans}
    assert by_name[None].harms and by_name["fixed"].harms
    assert not by_name["server-only"].harms and not by_name["heterogeneous"].harms


def test_windows_that_need_more_than_the_uplink_are_marked() -> None:
    by_name = {
        plan.policy: plan for plan in compare(view(budget=3e3), "window", [0, 1, 2, 3]).plans
    }
    assert not by_name["fixed"].fits
    assert by_name["heterogeneous"].fits and by_name["server-only"].fits
