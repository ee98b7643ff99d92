"""Rates against the textbook formula and an independent root finder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import lambertw

from multispin.errors import BadInput
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency, MixedRadio
from multispin.radio.units import THERMAL_NOISE_DBM_PER_HZ, db_to_linear, spectral_efficiency


def test_units():
    assert db_to_linear([0, 10, -20, 3]) == pytest.approx([1, 10, 0.01, 1.99526], rel=1e-5)
    assert spectral_efficiency([0, 1, 3, 1023]) == pytest.approx([0, 1, 2, 10])
    boltzmann, room_k = 1.380649e-23, 290
    milliwatts = db_to_linear(THERMAL_NOISE_DBM_PER_HZ)
    assert milliwatts * 1e-3 == pytest.approx(boltzmann * room_k, rel=1e-3)


def test_constant_efficiency_is_proportional():
    radio = ConstantEfficiency(np.array([2.0, 5.0]))
    assert radio.rate(np.array([10.0, 10.0])).tolist() == [20, 50]
    assert radio.bandwidth(np.array([20.0, np.inf])).tolist() == [10, np.inf]
    assert radio.bandwidth_derivatives(np.array([20.0, 50.0]))[1].tolist() == [0.5, 0.2]


@given(width=st.floats(1e-3, 1e12), share=st.floats(1e-12, 1e9).map(lambda x: x))
def test_noise_inverse_returns_the_bandwidth(width, share):
    """From almost no bandwidth to a billion times W, where the rate has all but saturated."""
    radio = BandwidthNoise(np.array([width]))
    hertz = np.array([share * width])
    rate = radio.rate(hertz)
    assert rate[0] == pytest.approx(hertz[0] * np.log1p(width / hertz[0]) / np.log(2))
    # near saturation the rate hardly moves: compare rates, as precisely as doubles allow
    assert radio.rate(radio.bandwidth(rate))[0] == pytest.approx(rate[0], rel=1e-12)
    if share < 100:
        assert radio.bandwidth(rate)[0] == pytest.approx(hertz[0], rel=1e-9)


def test_noise_inverse_against_lambert_and_brentq():
    radio = BandwidthNoise(np.array([1e6]))
    for u in np.concatenate([np.linspace(0.02, 0.98, 49), [1e-3, 0.999]]):
        rate = u * 1e6 / np.log(2)
        found = radio.bandwidth(np.array([rate]))[0]
        snr = -lambertw(-u * np.exp(-u), -1).real / u - 1
        assert found == pytest.approx(1e6 / snr, rel=1e-7)
        root = brentq(lambda b, rate=rate: b * np.log2(1 + 1e6 / b) - rate, 1e-3, 1e10, xtol=1e-6)
        assert found == pytest.approx(root, rel=1e-6)


def test_noise_limits():
    radio = BandwidthNoise(np.array([1e6]))
    most = 1e6 / np.log(2)
    assert radio.bandwidth(np.array([0.0]))[0] == 0
    assert radio.rate(np.array([0.0]))[0] == 0
    assert np.isinf(radio.bandwidth(np.array([most])))
    assert np.isinf(radio.bandwidth(np.array([np.inf])))
    assert radio.rate(np.array([1e16]))[0] == pytest.approx(most)
    b, slope, curve = radio.bandwidth_derivatives(np.array([0.0]))
    assert (b[0], slope[0], curve[0]) == (0, 0, 0)


@pytest.mark.parametrize("u", [1e-6, 0.01, 0.3, 0.7, 0.95, 0.99995])
def test_noise_derivatives_by_differences(u):
    radio = BandwidthNoise(np.array([1e6]))
    rate = u * 1e6 / np.log(2)
    step = min(u, 1 - u) * 1e-3 * rate / u
    low, here, high = (radio.bandwidth(np.array([rate + d]))[0] for d in (-step, 0, step))
    b, slope, curve = (x[0] for x in radio.bandwidth_derivatives(np.array([rate])))
    assert b == pytest.approx(here)
    assert slope == pytest.approx((high - low) / (2 * step), rel=1e-4)
    if 1e-3 < u < 0.999:
        assert curve == pytest.approx((high - 2 * here + low) / step**2, rel=1e-3)


def test_rate_is_concave_and_increasing():
    radio = BandwidthNoise(np.full(200, 1e6))
    rate = radio.rate(np.linspace(1, 1e8, 200))
    assert (np.diff(rate) > 0).all() and (np.diff(rate, 2) < 0).all()


def test_mixed_radio_is_each_devices_own():
    constant, noisy = ConstantEfficiency(np.array([3.0, 1.0])), BandwidthNoise(np.array([1.0, 1e6]))
    mixed = MixedRadio(np.array([False, True]), constant, noisy)
    hertz = np.array([[1e5, 1e5], [2e5, 3e5]])
    rate = mixed.rate(hertz)
    assert (rate[:, 0] == 3 * hertz[:, 0]).all()
    assert rate[:, 1] == pytest.approx(hertz[:, 1] * np.log2(1 + 1e6 / hertz[:, 1]))
    assert mixed.bandwidth(rate) == pytest.approx(hertz)
    assert mixed.bandwidth_derivatives(rate)[0] == pytest.approx(hertz)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_a_radio_needs_positive_numbers(bad):
    with pytest.raises(BadInput, match="positive"):
        ConstantEfficiency(np.array([1.0, bad]))
    with pytest.raises(BadInput, match="positive"):
        BandwidthNoise(np.array([1.0, bad]))
