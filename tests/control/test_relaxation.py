"""Closed form and Newton against brute force over L, SciPy's Lambert W, and a convex solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_cells import paper_cell, random_cell
from scipy.special import lambertw

from multispin.control import Objective
from multispin.control.deadline import bandwidth_needed
from multispin.control.fairness import utility
from multispin.control.heterogeneous import share_bandwidth
from multispin.control.relaxation import Relaxation, lambert_w0_of_exp

cvxpy = pytest.importorskip("cvxpy")


def test_lambert_in_the_log_domain():
    inside = np.linspace(-50, 300, 5001)
    assert lambert_w0_of_exp(inside) == pytest.approx(lambertw(np.exp(inside)).real, rel=1e-9)
    outside = np.array([-600.0, 800.0, 1e6])  # where exp under- or overflows
    w = lambert_w0_of_exp(outside)
    assert w + np.log(w) == pytest.approx(outside, rel=1e-12)


def brute_lengths(problem, deadline, bandwidth_price, price, longest):
    """argmax of u(L) - p t L - q b(L) on a fine grid, per device."""
    grid = np.linspace(problem.min_draft_length, longest, 20001)  # [N, K]
    hertz = bandwidth_needed(problem, grid + 1e-12, np.array([deadline]))
    score = utility(problem, grid) - price * problem.verify_per_token_s * grid
    score = score - bandwidth_price * hertz
    return grid[score.argmax(axis=0), np.arange(problem.num_devices)], score.max(axis=0)


@pytest.mark.parametrize("kind", ["sum", "proportional"])
@pytest.mark.parametrize("seed", range(40))
def test_lengths_at_given_prices_by_brute_force(seed, kind):
    rng = np.random.default_rng(seed)
    problem = random_cell(rng, 4, objective=Objective(kind))
    deadline, price = rng.uniform(0.05, 1.0), rng.uniform(1, 100)
    relaxation = Relaxation(problem)
    least = np.array([problem.min_draft_length])
    q = price * deadline / problem.bandwidth_hz * np.exp(rng.uniform(-4, 1))
    phi, prices = np.array([[deadline]]), (np.array([[q]]), price)
    found = relaxation.closed_form(phi, prices[0])
    for _ in range(10):
        found, needed, lengths_slope, hertz_slope = relaxation.respond(phi, *prices, least, found)
    found, needed = found[0], needed[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = deadline * problem.alone_rate - problem.bits_per_draft
        longest = bits / (problem.bits_per_token + problem.draft_s_per_token * problem.alone_rate)
    longest = np.fmin(np.maximum(longest, problem.min_draft_length), problem.max_draft_length)
    _, best = brute_lengths(problem, deadline, q, price, longest)
    hertz = bandwidth_needed(problem, found + 1e-12, np.array([deadline]))
    in_time = np.isfinite(hertz) & (found > 0)
    assert needed[in_time] == pytest.approx(hertz[in_time], rel=1e-3, abs=1e-3)
    score = utility(problem, found) - price * problem.verify_per_token_s * found - q * hertz
    assert (score >= best - 1e-4 * (1 + np.abs(best))).all()
    # the slopes that the price iteration relies on, by differences
    up = [np.array([[q * 1.001]]), price]
    more = found[None, :]
    for _ in range(4):
        more, more_hertz, *_ = relaxation.respond(phi, *up, least, more)
    free = (found > 0.1) & (hertz_slope[0] < 0)
    assert (more[0] - found)[free] == pytest.approx(
        1e-3 * lengths_slope[0][free], rel=0.02, abs=1e-7
    )
    assert (more_hertz[0] - needed)[free] == pytest.approx(
        1e-3 * hertz_slope[0][free], rel=0.02, abs=1e-3
    )


@pytest.mark.parametrize("deadline", [0.1, 0.3, 1.0])
def test_demand_is_known_before_the_lengths_have_settled(deadline):
    """One step from lengths that take the whole band each, forty times too much in all."""
    problem = paper_cell(np.random.default_rng(1), 40, noisy=True)
    phi, q = np.array([[deadline]]), np.array([[20.0 * deadline / problem.bandwidth_hz]])
    found = Relaxation(problem).respond(phi, q, 20.0, np.array([0]), np.full((1, 40), 25.0))
    exact = bandwidth_needed(problem, found.lengths, phi).sum()
    assert found.hertz.sum() == pytest.approx(exact, rel=0.2)


def shared(problem, deadline):
    """From a cold start, and twice more from where that came to."""
    shares = None
    relaxation = Relaxation(problem)
    for _ in range(3):
        shares = share_bandwidth(relaxation, np.array([[deadline]]), 1.0, shares)
    return shares


def utility_at_budget(problem, shares):
    """Hertz too many are worth their price: what is left of the mismatch is of second order."""
    excess = shares.demand_hz[0, 0] - problem.bandwidth_hz
    return utility(problem, shares.lengths[0]).sum() - np.exp(shares.log_price[0, 0]) * excess


def oracle(problem, deadline):
    """max sum E[N_k](L_k) subject to sum b_k(L_k, phi) <= B, 0 <= L <= max, as a convex program."""
    k = problem.num_devices
    length, hertz = cvxpy.Variable(k), cvxpy.Variable(k, nonneg=True)
    a, s, q = problem.acceptance, problem.draft_s_per_token, problem.bits_per_token
    left = deadline - cvxpy.multiply(s, length)
    # Q L/(phi - s L) = -Q/s + (Q phi/s)/(phi - s L), in Mbit/s and MHz
    rate = cvxpy.multiply(q * deadline / s / 1e6, cvxpy.inv_pos(left)) - q / s / 1e6
    if problem.uplink.linear:
        carried = cvxpy.multiply(problem.uplink.bits_per_s_per_hz, hertz)
    else:
        width = problem.uplink.power_to_noise_hz / 1e6
        carried = -cvxpy.rel_entr(hertz, hertz + width) / np.log(2)
    tokens = cvxpy.sum(
        cvxpy.multiply(
            1 / (1 - a), 1 - cvxpy.multiply(a, cvxpy.exp(cvxpy.multiply(np.log(a), length)))
        )
    )
    limits = [carried >= rate, cvxpy.sum(hertz) <= problem.bandwidth_hz / 1e6]
    limits += [length >= 0, length <= problem.max_draft_length]
    program = cvxpy.Problem(cvxpy.Maximize(tokens), limits)
    program.solve(solver=cvxpy.CLARABEL)
    return float(program.value), np.asarray(length.value)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("deadline", [0.08, 0.2, 0.6])
def test_sharing_against_a_convex_solver(noisy, deadline):
    problem = paper_cell(np.random.default_rng(5), 12, noisy=noisy)
    acceptance = np.clip(problem.acceptance, 0.05, 0.98)
    problem = replace(problem, acceptance=acceptance)
    best, lengths = oracle(problem, deadline)
    shares = shared(problem, deadline)
    assert utility_at_budget(problem, shares) == pytest.approx(best, rel=1e-5)
    assert shares.lengths[0] == pytest.approx(lengths, abs=0.06)
    used = bandwidth_needed(problem, shares.lengths[0], np.array([deadline])).sum()
    assert used == pytest.approx(problem.bandwidth_hz, rel=1e-2)
    assert shares.demand_hz[0, 0] == pytest.approx(used, rel=1e-3)


@pytest.mark.parametrize("noisy", [False, True])
def test_best_utility_is_concave_in_the_deadline(noisy):
    """Why one peak is enough to look for: V(phi) is concave without headers."""
    problem = paper_cell(np.random.default_rng(3), 8, noisy=noisy)
    deadlines = np.linspace(0.03, 1.0, 25)
    utilities = [utility_at_budget(problem, shared(problem, d)) for d in deadlines]
    assert (np.diff(utilities, 2) < 1e-4).all()


def test_good_drafters_are_rewarded():
    """In the heterogeneous optimum bandwidth rises with acceptance, all else equal."""
    problem = paper_cell(np.random.default_rng(2), 10)
    problem = replace(
        problem,
        acceptance=np.linspace(0.3, 0.95, 10),
        draft_s_per_token=np.full(10, 0.02),
        uplink=type(problem.uplink)(np.full(10, 5.0)),
    )
    hertz = bandwidth_needed(problem, shared(problem, 0.2).lengths[0], np.array([0.2]))
    assert (np.diff(hertz) > 0).all()
