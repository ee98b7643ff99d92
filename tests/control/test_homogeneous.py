"""Common length and equal shares against scans, SciPy's Lambert W, and every combination."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from random_cells import paper_cell, random_cell
from scipy.special import lambertw

from multispin.control import bandwidth_for, evaluate, expected_tokens, solve
from multispin.control.homogeneous import closed_form_length, token_latency
from multispin.control.length_only import equal_shares


@pytest.mark.parametrize("acceptance", [0.05, 0.5, 0.74, 0.95, 0.999])
@pytest.mark.parametrize("ratio", [0.5, 1.2, 3.0, 30.0, 1e3, 1e6])
def test_closed_form_length_by_scan(acceptance, ratio):
    """No length on a fine grid beats the closed form, T = ratio, theta = 1."""
    exact = max(closed_form_length(acceptance, 1.0, ratio), 0.0)
    grid = np.linspace(0, 2 * exact + 5, 40001)

    def goodput(length):
        return expected_tokens(np.array(acceptance), np.asarray(length)) / (ratio + length)

    assert goodput(exact) >= goodput(grid).max() * (1 - 1e-12)


def test_closed_form_length_is_lamberts():
    for ratio in (1.5, 4.0, 40.0):
        a = 0.8
        w = lambertw(-(a ** (ratio - 1)) / np.e, -1).real
        assert closed_form_length(a, 1.0, ratio) == pytest.approx(-np.log(-w) / np.log(a) - 1)


def test_token_latency_is_the_root():
    problem = paper_cell(np.random.default_rng(0))
    theta = token_latency(problem)
    left = theta - problem.draft_s_per_token
    need = problem.bits_per_token / (problem.uplink.bits_per_s_per_hz * left)
    assert theta > problem.draft_s_per_token.max()
    assert need.sum() == pytest.approx(problem.bandwidth_hz, rel=1e-12)
    assert (np.diff(need[np.argsort(problem.uplink.bits_per_s_per_hz * left)]) <= 0).all()


@pytest.mark.parametrize("seed", range(120))
def test_homogeneous_is_the_best_common_length(seed):
    rng = np.random.default_rng(seed)
    problem = random_cell(rng, int(rng.integers(1, 8)), max_draft_length=25)
    if seed % 3 == 0:  # the closed form's own case
        same = np.full(problem.num_devices, rng.uniform(0.01, 0.99))
        headless = np.zeros(problem.num_devices)
        problem = replace(problem, acceptance=same, bits_per_draft=headless)
    plan = solve(problem, "homogeneous")
    assert len(set(plan.lengths.tolist())) == 1
    for length in range(problem.min_draft_length, 26):
        rival = bandwidth_for(problem, np.full(problem.num_devices, length))
        assert plan.goodput_tokens_per_s >= rival.goodput_tokens_per_s * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(120))
def test_length_only_is_the_best_under_equal_shares(seed):
    rng = np.random.default_rng(seed)
    problem = random_cell(rng, int(rng.integers(1, 4)), max_draft_length=6)
    plan = solve(problem, "length-only")
    shares = equal_shares(problem)
    assert (plan.bandwidths_hz == shares).all()
    options = range(problem.min_draft_length, 7)
    for lengths in itertools.product(options, repeat=problem.num_devices):
        rival = evaluate(problem, np.array(lengths), shares)
        assert plan.goodput_tokens_per_s >= rival.goodput_tokens_per_s * (1 - 1e-9)
