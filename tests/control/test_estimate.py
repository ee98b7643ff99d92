"""Estimators against known truths: noise, steps, outliers, nothing at all, and nonsense.

Seeds are fixed, so these tests cannot flicker; the docstrings say how far away from the noise the
tolerances are.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multispin.control.estimate import (
    AcceptanceEstimate,
    AcceptancePrior,
    DeviceEstimate,
    DevicePrior,
    RunningMean,
    VerificationCurve,
    VerificationFit,
    equivalent_acceptance,
    survivals,
)
from multispin.errors import BadInput

ANY = st.floats(allow_nan=True, allow_infinity=True)


def feed(mean, truth, rng, start_s, num, noise=0.2, outliers=0.0, every_s=0.5):
    """``num`` observations of a gamma law around ``truth``, some 20 to 100 times too large."""
    for i in range(num):
        value = truth * rng.gamma(1 / noise**2, noise**2)
        if rng.random() < outliers:
            value *= rng.uniform(20, 100)
        assert mean.observe(value, start_s + i * every_s)
    return start_s + num * every_s


# --- RunningMean ---------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [1e-4, 0.02, 3.0, 100.0])
def test_mean_converges_from_a_prior_orders_of_magnitude_away(truth):
    """Ten half-lives of 20 observations: deviation 0.2/sqrt(58) = 2.6 %; 12 % is 4.5 of them."""
    mean = RunningMean(prior=0.02, prior_weight=2, half_life_s=10)
    feed(mean, truth, np.random.default_rng(1), 0.0, 200)
    assert mean.value() == pytest.approx(truth, rel=0.12)


@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0, 10.0])
def test_step_is_followed_within_four_half_lives(factor):
    """Four half-lives leave 1/16 of the step without clipping; 15 % allows for that and noise."""
    rng = np.random.default_rng(2)
    mean = RunningMean(prior=0.02, prior_weight=2, half_life_s=10)
    now = feed(mean, 0.02, rng, 0.0, 200)
    feed(mean, 0.02 * factor, rng, now, 80)
    assert mean.value() == pytest.approx(0.02 * factor, rel=0.15)


def test_weights_halve_at_the_half_life():
    mean = RunningMean(prior=1.0, prior_weight=1, half_life_s=10)
    for _ in range(63):
        mean.observe(1.0, 0.0)
    assert mean.weight(0.0) == pytest.approx(64)
    assert mean.weight(10.0) == pytest.approx(32)
    assert mean.weight(1e6) == 1.0
    assert mean.weight(-5.0) == pytest.approx(64)  # a clock that went back


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_gross_outliers_moves_it_little(seed):
    """10 % at 20 to 100 times the truth would put a plain mean at 6.9 times; here below 1.3."""
    rng = np.random.default_rng(seed)
    mean = RunningMean(prior=0.02, prior_weight=2, half_life_s=20)
    feed(mean, 0.02, rng, 0.0, 400, outliers=0.1)
    assert 0.9 * 0.02 < mean.value() < 1.3 * 0.02


def test_no_data_and_one_datum():
    mean = RunningMean(prior=0.02, prior_weight=4, half_life_s=10)
    assert mean.value() == 0.02
    mean.observe(0.03, 5.0)
    assert mean.value() == pytest.approx((4 * 0.02 + 0.03) / 5)
    mean = RunningMean(prior=0.02, prior_weight=4, half_life_s=10)
    mean.observe(1e9, 5.0)  # clipped at prior + 3 deviations
    assert mean.value() == pytest.approx((4 * 0.02 + 0.08) / 5)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf, 1e200])
def test_what_cannot_be_true_is_ignored(value):
    mean = RunningMean(prior=0.02, prior_weight=4, half_life_s=10)
    assert not mean.observe(value, 1.0)
    assert not mean.observe(0.02, math.nan)
    assert not mean.observe(0.02, 1.0, weight=value)
    assert mean.value() == 0.02


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_settings_are_refused(bad):
    for arguments in ((bad, 1, 1), (1, bad, 1), (1, 1, bad)):
        with pytest.raises(BadInput):
            RunningMean(*arguments)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ANY, ANY, ANY), max_size=30))
def test_mean_is_finite_and_within_what_was_seen(observations):
    mean = RunningMean(prior=0.02, prior_weight=4, half_life_s=10)
    seen = [0.02]
    for value, now, weight in observations:
        if mean.observe(value, now, weight):
            seen.append(value)
    assert math.isfinite(mean.value())
    assert min(seen) * (1 - 1e-9) <= mean.value() <= max(seen) * (1 + 1e-9)


# --- DeviceEstimate ------------------------------------------------------------------------------


def test_device_without_data_is_its_prior():
    prior = DevicePrior(draft_s_per_token=0.01, uplink_bits_per_s=5e5, round_trip_s=0.05)
    device = DeviceEstimate(prior)
    assert device.draft_s_per_token == 0.01
    assert device.uplink_bits_per_s == pytest.approx(5e5)
    assert device.round_trip_s == 0.05


def test_device_converges():
    """About 150 drafts in effect; 8 % is more than six deviations of each mean."""
    rng = np.random.default_rng(3)
    device = DeviceEstimate(half_life_s=20)
    for i in range(1000):
        now, num = 0.2 * i, int(rng.integers(1, 9))
        device.observe_draft(num, num * 0.05 * rng.uniform(0.8, 1.2), now)
        bits = 100 + 18 * num
        device.observe_upload(bits, bits / 40e3 * rng.uniform(0.7, 1.3), now)
        device.observe_round_trip(0.1 + rng.exponential(0.02), now)
    assert device.draft_s_per_token == pytest.approx(0.05, rel=0.08)
    assert device.uplink_bits_per_s == pytest.approx(40e3, rel=0.08)
    assert device.round_trip_s == pytest.approx(0.12, rel=0.08)


def test_instant_drafting_and_uploads_are_legal():
    device = DeviceEstimate()
    for i in range(200):
        assert device.observe_draft(4, 0.0, float(i))
        assert device.observe_upload(1e4, 0.0, float(i))
    assert device.draft_s_per_token < 1e-4
    assert 1e7 < device.uplink_bits_per_s <= 1e12


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-2, 10**9), ANY, ANY, ANY), max_size=20))
def test_device_is_always_finite(observations):
    device = DeviceEstimate()
    for num, bits, seconds, now in observations:
        device.observe_draft(num, seconds, now)
        device.observe_upload(bits, seconds, now)
        device.observe_round_trip(seconds, now)
    assert math.isfinite(device.draft_s_per_token) and device.draft_s_per_token >= 0
    assert 0 < device.uplink_bits_per_s <= 1e12
    assert math.isfinite(device.round_trip_s) and device.round_trip_s >= 0


# --- AcceptanceEstimate --------------------------------------------------------------------------


def draw(rng, positions):
    """Accepted tokens of a draft whose j-th token is accepted with probability positions[j]."""
    rejected = np.flatnonzero(rng.random(len(positions)) >= positions)
    return int(rejected[0]) if len(rejected) else len(positions)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_alpha_converges(alpha):
    """At least 280 judged tokens: deviation below 0.03; 0.1 is more than three of them."""
    rng = np.random.default_rng(4)
    session = AcceptanceEstimate(half_life_drafts=200)
    for _ in range(2000):
        session.observe(5, draw(rng, np.full(5, alpha)))
    assert session.alpha == pytest.approx(alpha, abs=0.1)
    assert equivalent_acceptance(session.survival(5)) == pytest.approx(alpha, abs=0.1)


def test_positions_are_told_apart():
    """About 580 first tokens in effect, 190 last ones: deviation below 0.035."""
    rng = np.random.default_rng(5)
    truth = np.array([0.9, 0.8, 0.6, 0.75])
    session = AcceptanceEstimate(half_life_drafts=400)
    for _ in range(4000):
        session.observe(4, draw(rng, truth))
    assert session.positions(4) == pytest.approx(truth, abs=0.1)
    assert session.survival(4) == pytest.approx(np.cumprod(truth), abs=0.1)
    # beyond what was drafted: the mean over positions
    assert session.positions(6)[4:] == pytest.approx(session.alpha)


def test_alpha_is_the_maximum_likelihood_of_the_geometric_model():
    prior = AcceptancePrior(0.5, pair_tokens=1e-9, position_tokens=1e-9)
    session = AcceptanceEstimate(prior, half_life_drafts=1e12)
    for num_draft, num_accepted in ((5, 2), (3, 3), (4, 0), (1, 1)):
        session.observe(num_draft, num_accepted)
    assert session.alpha == pytest.approx(6 / 8)
    assert session.positions(3) == pytest.approx([3 / 4, 2 / 2, 1 / 2], abs=1e-6)


@pytest.mark.parametrize("alpha", [0.6, 0.8, 1.0])
def test_collapse_is_seen_within_eight_drafts(alpha):
    rng = np.random.default_rng(10)
    session = AcceptanceEstimate()
    for _ in range(100):
        session.observe(4, draw(rng, np.full(4, alpha)))
    assert session.alpha > alpha - 0.15
    for _ in range(8):
        session.observe(4, 0)
    assert session.survival(1)[0] < 0.45
    for _ in range(16):
        session.observe(4, 0)
    assert session.survival(1)[0] < 0.15


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.9])
def test_bad_luck_is_no_collapse(alpha):
    """Mean over 2,000 drafts of half-life 12: 0.04 is far beyond its deviation."""
    rng = np.random.default_rng(11)
    session, seen = AcceptanceEstimate(AcceptancePrior(alpha)), []
    for _ in range(2000):
        session.observe(4, draw(rng, np.full(4, alpha)))
        seen.append(session.alpha)
    assert np.mean(seen) == pytest.approx(alpha, abs=0.04)


def test_an_empty_draft_is_no_evidence():
    session = AcceptanceEstimate()
    session.observe(4, 2)
    before = session.alpha, session.num_tokens
    assert not session.observe(0, 0)
    assert (session.alpha, session.num_tokens) == before


def test_session_without_data_is_its_prior():
    session = AcceptanceEstimate(AcceptancePrior(0.6))
    assert session.alpha == pytest.approx(0.6)
    assert session.survival(3) == pytest.approx([0.6, 0.36, 0.216])
    assert session.survival(0).shape == (0,)


@pytest.mark.parametrize(("num_draft", "num_accepted"), [(2, 3), (2, -1), (-1, -1), (-1, 0)])
def test_impossible_counts(num_draft, num_accepted):
    with pytest.raises(BadInput):
        AcceptanceEstimate().observe(num_draft, num_accepted)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.77, 1.0])
def test_equivalent_acceptance_inverts_the_geometric_law(alpha):
    survival = np.cumprod(np.full((3, 7), alpha), axis=-1)
    assert equivalent_acceptance(survival) == pytest.approx(np.full(3, alpha), abs=1e-9)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), max_size=40),
    st.floats(0, 1),
    st.integers(1, 40),
)
def test_acceptance_stays_a_probability(drafts, prior, length):
    session = AcceptanceEstimate(AcceptancePrior(prior))
    for num_draft, share in drafts:
        session.observe(num_draft, round(share * num_draft))
    table = survivals([session, AcceptanceEstimate()], length)
    assert table.shape == (2, length)
    assert ((table >= 0) & (table <= 1)).all()
    assert (np.diff(table, axis=-1) <= 0).all()
    assert 0 <= session.alpha <= 1
    assert (table[0] == session.survival(length)).all()
    assert ((equivalent_acceptance(table) >= 0) & (equivalent_acceptance(table) <= 1)).all()


# --- VerificationCurve ---------------------------------------------------------------------------

PRIOR = VerificationFit(fixed_s=0.05, per_token_s=0.01)


def passes(curve, truth, rng, num, outliers=0.0, noise=0.05):
    for _ in range(num):
        sequences = int(rng.integers(1, 9))
        rows = sequences + int(rng.integers(0, 4 * sequences))
        seconds = float(truth(rows, sequences)) * rng.uniform(1 - noise, 1 + noise)
        if rng.random() < outliers:
            seconds *= rng.uniform(5, 50)
        assert curve.observe(rows, sequences, seconds)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_line_converges_at_any_scale(scale):
    """Some 290 passes with 3 % deviation: each coefficient within 15 %."""
    truth = VerificationFit(0.04 * scale, 0.006 * scale, 0.003 * scale)
    curve = VerificationCurve(PRIOR, half_life_passes=200)
    passes(curve, truth.seconds, np.random.default_rng(6), 1500)
    fit = curve.fit
    assert fit.per_token_s == pytest.approx(truth.per_token_s, rel=0.15)
    assert fit.per_device_s == pytest.approx(truth.per_device_s, rel=0.25)
    assert fit.fixed_s == pytest.approx(truth.fixed_s, rel=0.15)
    rows = np.array([4, 12, 30])
    assert curve.seconds(rows, 4) == pytest.approx(truth.seconds(rows, 4), rel=0.1)


def test_a_tenth_of_gross_outliers_in_passes():
    """A plain mean would be 3.5 times too long."""
    truth = VerificationFit(0.04, 0.006, 0.003)
    curve = VerificationCurve(PRIOR, half_life_passes=200)
    passes(curve, truth.seconds, np.random.default_rng(7), 1500, outliers=0.1)
    rows = np.array([2, 8, 16, 24])
    assert curve.seconds(rows, 4) == pytest.approx(truth.seconds(rows, 4), rel=0.25)
    assert curve.fit.seconds(rows, 4) == pytest.approx(truth.seconds(rows, 4), rel=0.3)


def test_steps_are_kept():
    """machine.md, native: 3 rows cost more than 4. Medians of 15 with 3 % deviation."""
    table = {1: 70, 2: 109, 3: 133, 4: 125, 6: 182, 8: 231, 12: 280, 16: 275}
    rng = np.random.default_rng(8)
    curve = VerificationCurve(PRIOR)
    for _ in range(400):
        rows = int(rng.choice(list(table)))
        curve.observe(rows, 1, table[rows] * 1e-3 * rng.uniform(0.95, 1.05))
    found = curve.seconds(np.array(list(table)))
    assert found == pytest.approx(np.array(list(table.values())) * 1e-3, rel=0.04)
    assert curve.seconds(3) > curve.seconds(4)
    assert 0.182 * 0.95 < curve.seconds(7) < 0.231 * 1.05  # never seen: between its neighbours
    assert curve.seconds(32) > curve.seconds(16)  # nor this: along the line


def test_a_slower_machine_is_followed_within_two_half_lives():
    rng = np.random.default_rng(9)
    before, after = VerificationFit(0.04, 0.0, 0.003), VerificationFit(0.12, 0.0, 0.009)
    curve = VerificationCurve(PRIOR, half_life_passes=100)
    passes(curve, before.seconds, rng, 500)
    passes(curve, after.seconds, rng, 200)
    rows = np.array([4, 8, 16])
    assert curve.fit.seconds(rows, 4) == pytest.approx(after.seconds(rows, 4), rel=0.15)


def test_no_pass_and_one_row_count():
    curve = VerificationCurve(PRIOR)
    assert curve.seconds(8, 3) == pytest.approx(PRIOR.seconds(8, 3))
    assert curve.fit == PRIOR
    curve.observe(4, 1, 0.18)  # the prior says 0.09
    assert 0.09 < curve.seconds(4) < 0.18
    for _ in range(30):
        curve.observe(4, 1, 0.18)
    assert curve.seconds(4) == pytest.approx(0.18)
    # the shape is still the prior's
    assert curve.seconds(8) == pytest.approx(0.26, rel=0.1)
    assert curve.fit.fixed_s > 0 and curve.fit.per_token_s > 0


@pytest.mark.parametrize(
    ("rows", "sequences", "seconds"),
    [(0, 0, 0.1), (4, 0, 0.1), (2, 3, 0.1), (4, 1, 0.0), (4, 1, -1.0), (4, 1, math.nan)],
)
def test_impossible_passes_are_ignored(rows, sequences, seconds):
    curve = VerificationCurve(PRIOR)
    assert not curve.observe(rows, sequences, seconds)
    assert curve.fit == PRIOR


def test_bad_priors():
    for prior in (VerificationFit(-0.1, 0.2), VerificationFit(0.0), VerificationFit(math.nan)):
        with pytest.raises(BadInput):
            VerificationCurve(prior)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-1, 70), st.integers(-1, 9), ANY), max_size=40))
def test_curve_is_always_positive_and_finite(observations):
    curve = VerificationCurve(PRIOR)
    for rows, sequences, seconds in observations:
        curve.observe(rows, sequences, seconds)
    fit = curve.fit
    assert min(fit.fixed_s, fit.per_device_s, fit.per_token_s) >= 0
    found = curve.seconds(np.arange(1, 65))
    assert np.isfinite(found).all() and (found > 0).all()
