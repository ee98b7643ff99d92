"""Mode window: the plan against every combination, and what must hold whatever it is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from random_cells import log_uniform

from multispin.control import Problem
from multispin.control.window import WindowCell, evaluate_window, solve_window
from multispin.errors import BadInput
from multispin.radio.channel import ConstantEfficiency


def window_cell(rng, num_devices, max_window=32, scarce=False):
    """Problem, survival [K, max_window] and round trips [K]: ids travel over a real network."""
    k = num_devices
    problem = Problem(
        draft_s_per_token=log_uniform(rng, 0.002, 0.06, k),
        acceptance=np.zeros(k),
        bits_per_token=np.full(k, 18.0),
        bits_per_draft=np.full(k, 784.0),
        uplink=ConstantEfficiency(rng.uniform(1, 4, k)),
        bandwidth_hz=float(log_uniform(rng, 2e3 * k, 2e4 * k)) if scarce else 1e9,
        verify_fixed_s=float(log_uniform(rng, 0.01, 0.1)),
        verify_per_device_s=float(rng.choice([0, 0.002])),
        verify_per_token_s=float(rng.choice([0, 0.0002, 0.001, 0.01])),
        max_draft_length=max_window,
    )
    survival = np.cumprod(rng.beta(4, 1.5, (k, max_window)), axis=1)
    return problem, survival, log_uniform(rng, 0.003, 0.2, k)


def settled(cell, lengths):
    """Pass [C], rates [C, K] and hertz used [C] of windows [C, K] where the pass is what it is."""
    found = []
    equal = np.zeros(cell.problem.num_devices)
    for row in lengths:
        cell.share_out(equal)
        pass_s, at = cell.problem.base_round_s, (row, np.arange(len(row)))
        for _ in range(30):
            table = cell.table(pass_s)
            rows = table.rows[at].sum()
            pass_s = 0.5 * (
                pass_s + cell.problem.base_round_s + cell.problem.verify_per_token_s * rows
            )
            cell.share_out(cell.plan(table, row).bandwidths_hz)
        found.append(((1 + table.accepted[at]) / pass_s, table.hertz_s[at].sum() / pass_s))
    rates, hertz = zip(*found, strict=True)
    return np.array(rates), np.array(hertz)


@pytest.mark.parametrize("least_share", [0.0, 0.97])
def test_against_every_combination(least_share):
    """40 cells of 1 to 3 devices, half with a scarce uplink: within 1 % on average."""
    gaps = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        num_devices = int(rng.integers(1, 4))
        problem, survival, trips = window_cell(rng, num_devices, 4, scarce=seed % 2 == 1)
        every = np.array(list(itertools.product(range(5), repeat=num_devices)))
        rates, hertz = settled(WindowCell(problem, survival, trips), every)
        fits = hertz <= problem.bandwidth_hz * (1 + 1e-9)
        fits &= rates.min(axis=-1) >= least_share / problem.base_round_s * (1 - 1e-9)
        plan = solve_window(problem, survival, trips, least_share=least_share)
        at = int((every == plan.lengths).all(axis=-1).argmax())
        gaps.append(1 - rates[at].sum() / rates.sum(axis=-1)[fits].max())
        assert rates[at].sum() == pytest.approx(plan.goodput_tokens_per_s, rel=0.1)
    assert np.mean(gaps) < 0.01
    assert max(gaps) < 0.12


@pytest.mark.parametrize("seed", range(30))
def test_the_plan_keeps_to_the_budget_and_harms_nobody(seed):
    rng = np.random.default_rng(seed)
    num_devices = int(rng.choice([1, 3, 20, 100]))
    problem, survival, trips = window_cell(rng, num_devices, scarce=seed % 2 == 1)
    plan = solve_window(problem, survival, trips)
    alone = 1 / problem.base_round_s
    assert plan.bandwidths_hz.sum() <= problem.bandwidth_hz * (1 + 1e-9)
    assert (plan.bandwidths_hz[plan.lengths == 0] == 0).all()
    rates, hertz = settled(WindowCell(problem, survival, trips), plan.lengths[None, :])
    assert hertz[0] <= problem.bandwidth_hz * 1.05  # at the pass that settles
    assert rates[0].min() >= 0.95 * alone
    assert rates[0].sum() >= 0.999 * num_devices * alone
    again = evaluate_window(problem, survival, trips, plan.lengths)
    assert again.goodput_tokens_per_s == pytest.approx(rates[0].sum(), rel=0.02)


def test_bits_fall_as_bandwidth_gets_dearer():
    problem, survival, trips = window_cell(np.random.default_rng(3), 10)
    cell = WindowCell(replace(problem, verify_per_token_s=0.0005), survival, trips)
    table = cell.table(0.05)
    value = cell.value(table, theta=200.0, least_accepted=0.0)
    used = [
        table.hertz_s[(value - price * table.hertz_s).argmax(axis=0), np.arange(10)].sum()
        for price in np.geomspace(1e-5, 1e5, 40)
    ]
    assert used == sorted(used, reverse=True)
    assert used[0] > 0 == used[-1]


def test_where_drafts_hold_a_position_pays_while_its_survival_covers_row_and_bits():
    """Where nothing is lost by a rejection the table's best window is the marginal rule's."""
    survival = np.array([0.9 * 0.8 ** np.arange(10)])
    problem, _, _ = window_cell(np.random.default_rng(0), 1, 10)
    problem = replace(
        problem,
        draft_s_per_token=np.zeros(1),
        bits_per_draft=np.zeros(1),
        verify_per_token_s=0.001,
        verify_per_device_s=0.0,
    )
    cell = WindowCell(problem, survival, np.zeros(1))
    table = cell.table(0.05)
    for theta in (50.0, 200.0, 400.0, 800.0):
        rows = survival[0] >= theta * 0.001
        value = cell.value(table, theta, 0.0)
        # Two passes go by until an answer: a window of 2 n keeps n in each.
        assert value.argmax() == pytest.approx(2 * rows.sum(), abs=2) or value.argmax() == 10


@pytest.mark.parametrize(
    "change",
    [{"acceptance": 0.0}, {"draft_s": 1e4}, {"trip": 1e4}],
)
def test_a_window_of_0_where_drafts_cannot_pay(change):
    problem, survival, trips = window_cell(np.random.default_rng(5), 3)
    problem = replace(
        problem,
        draft_s_per_token=np.array([change.get("draft_s", 0.01), 0.005, 0.005]),
        verify_per_token_s=0.0005,
    )
    survival[0] *= change.get("acceptance", 1.0)
    trips = np.array([change.get("trip", 0.01), 0.01, 0.01])
    plan = solve_window(problem, survival, trips)
    assert plan.lengths[0] == 0 or plan.device_tokens_per_s[0] * plan.pass_s < 1.01
    assert (plan.lengths[1:] > 0).any()


def test_who_is_owed_a_draft_that_does_not_fit_holds_the_others_back():
    """The first device's rows would make passes longer than the second can bear without drafts."""
    problem, survival, _ = window_cell(np.random.default_rng(0), 2, 8)
    problem = replace(
        problem,
        draft_s_per_token=np.array([0.001, 0.001]),
        bits_per_token=np.array([0.0, 1e6]),
        bits_per_draft=np.zeros(2),
        bandwidth_hz=1e3,
        verify_fixed_s=0.05,
        verify_per_device_s=0.0,
        verify_per_token_s=0.005,
    )
    survival[:] = 0.99 ** np.arange(8)
    plan = solve_window(problem, survival, np.full(2, 0.01))
    assert plan.lengths[1] == 0
    assert plan.device_tokens_per_s[1] >= 0.97 / problem.base_round_s
    free = solve_window(problem, survival, np.full(2, 0.01), least_share=0.0)
    assert free.lengths[0] > plan.lengths[0]
    assert free.device_tokens_per_s[1] < 0.97 / problem.base_round_s


def test_never_more_than_can_be_drafted_until_the_answer():
    problem, survival, trips = window_cell(np.random.default_rng(1), 8)
    problem = replace(problem, verify_per_token_s=0.0)
    plan = solve_window(problem, 0.0 * survival + 1.0, trips)
    answered_s = problem.draft_s_per_token + trips + 2 * plan.pass_s
    assert (plan.lengths <= np.ceil(answered_s / problem.draft_s_per_token)).all()


def test_survival_must_fit():
    problem, survival, trips = window_cell(np.random.default_rng(1), 2)
    with pytest.raises(BadInput):
        solve_window(problem, survival[:, :5], trips)
