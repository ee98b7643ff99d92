"""Gains against the distributions that they are named after, and averages against quadrature."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from multispin.radio.gains import coherence_s, drawn_gains, gain_nodes

FACTORS = [0.0, 0.1, 1.0, 10.0, 1000.0]
ODDS = 1e-6  # of a false failure in each test of a distribution


def distribution(rician_k: float):
    """2(1+k) g is a noncentral chi-square with two degrees and noncentrality 2k."""
    if rician_k == 0:
        return stats.expon()
    return stats.ncx2(2, 2 * rician_k, scale=1 / (2 * (1 + rician_k)))


@pytest.mark.parametrize("rician_k", FACTORS)
def test_drawn_gains_follow_their_law(rician_k):
    gains = drawn_gains(np.full(100, rician_k), 500, np.random.default_rng(5))
    assert gains.shape == (500, 100)
    assert stats.kstest(gains.ravel(), distribution(rician_k).cdf).pvalue > ODDS
    std = np.sqrt(1 + 2 * rician_k) / (1 + rician_k)  # 1 for Rayleigh
    assert gains.mean() == pytest.approx(1.0, abs=5 * std / np.sqrt(gains.size))


def test_gains_are_independent():
    """Over blocks and over devices: five standard errors, false in 600,000 seeds each."""
    gains = drawn_gains(np.zeros(300), 300, np.random.default_rng(6)) - 1.0
    limit = 5 / np.sqrt(gains.size)
    assert abs((gains[1:] * gains[:-1]).mean()) < limit
    assert abs((gains[:, 1:] * gains[:, :-1]).mean()) < limit


def test_each_device_has_its_own_factor_and_none_does_not_fade():
    gains = drawn_gains(np.array([0.0, 100.0, np.inf]), 2000, np.random.default_rng(7))
    assert gains[:, 0].std() > 5 * gains[:, 1].std() > 0
    assert (gains[:, 2] == 1.0).all()


@pytest.mark.parametrize("rician_k", FACTORS)
@pytest.mark.parametrize("least", [0.0, 0.3, 1.2])
def test_averages_against_adaptive_quadrature(rician_k, least):
    """The probability, the mean and an ergodic efficiency of what is above ``least``."""
    gains, weights = gain_nodes(np.array([rician_k]), np.array([least]))
    law = distribution(rician_k)
    middle, far = law.ppf([0.5, 1 - 1e-14])
    for f in (np.ones_like, lambda g: g, lambda g: np.log2(1 + 1e4 * g)):
        edges = sorted({least, max(least, middle), max(least, far)})
        parts = itertools.pairwise(edges)
        right = sum(
            quad(lambda g, f=f: f(g) * law.pdf(g), a, b, epsabs=1e-13, limit=500)[0]
            for a, b in parts
        )
        assert (weights * f(gains)).sum() == pytest.approx(right, rel=1e-7, abs=1e-10)


def test_nothing_is_above_an_unreachable_gain():
    gains, weights = gain_nodes(np.array([0.0, 4.0]), np.array([np.inf, 1e9]))
    assert (weights == 0).all() and np.isfinite(gains).all()


def test_coherence_by_hand():
    """1.5 m/s at 3.5 GHz: f_d = 17.5 Hz, T_c = 0.423/17.5 = 24.17 ms."""
    assert coherence_s(1.5, 3.5e9) == pytest.approx(0.0241714, rel=1e-5)
    assert coherence_s(3.0, 3.5e9) == pytest.approx(coherence_s(1.5, 7e9))
