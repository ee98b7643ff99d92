"""Names, limits, the extremes that are legal, and the ordering that the paper reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_cells import paper_cell, random_cell

from multispin.control import POLICIES, Problem, solve
from multispin.errors import BadInput
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency

ALL = [name for name in POLICIES if name not in ("exhaustive", "outage-constrained")]


def small(**changes):
    base = {
        "draft_s_per_token": np.array([0.02, 0.01, 0.03]),
        "acceptance": np.array([0.7, 0.9, 0.5]),
        "bits_per_token": np.full(3, 31744.0),
        "bits_per_draft": np.zeros(3),
        "uplink": ConstantEfficiency(np.array([5.0, 3.0, 7.0])),
        "bandwidth_hz": 1e6,
        "verify_fixed_s": 0.05,
        "verify_per_device_s": 0.01,
        "max_draft_length": 10,
    }
    return Problem(**{**base, **changes})


def test_unknown_policy_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean heterogeneous"):
        solve(small(), "hetrogeneous")


def test_exhaustive_refuses_more_than_a_million():
    with pytest.raises(BadInput, match="1,000,000"):
        solve(small(max_draft_length=100), "exhaustive")
    solve(small(max_draft_length=20), "exhaustive")


@pytest.mark.parametrize("limits", [(0, 3), (2, 5), (9, 12), (0, 0)])
def test_lengths_are_clamped(limits):
    problem = small(min_draft_length=limits[0], max_draft_length=limits[1])
    for policy in ALL:
        lengths = solve(problem, policy).lengths
        assert lengths.min() >= limits[0] and lengths.max() <= limits[1]
    clamped = min(max(8, limits[0]), limits[1])
    assert (solve(problem, "fixed").lengths == clamped).all()
    assert (solve(problem, "server-only").lengths == limits[0]).all()


def test_equal_bandwidth_policies_keep_their_share_and_others_give_it_up():
    dull = small(acceptance=np.zeros(3))
    assert (solve(dull, "length-only").bandwidths_hz == 1e6 / 3).all()
    assert (solve(dull, "fixed").bandwidths_hz == 1e6 / 3).all()
    for policy in ("heterogeneous", "homogeneous", "server-only"):
        plan = solve(dull, policy)
        assert (plan.lengths == 0).all() and (plan.bandwidths_hz == 0).all()


EXTREMES = {
    "alpha 0": {"acceptance": np.zeros(3)},
    "alpha 1": {"acceptance": np.ones(3)},
    "alpha 0 and 1": {"acceptance": np.array([0.0, 1.0, 0.5])},
    "alpha almost 1": {"acceptance": np.full(3, 1 - 1e-15)},
    "instant drafting": {"draft_s_per_token": np.zeros(3)},
    "zero bits": {"bits_per_token": np.zeros(3)},
    "zero bits, instant": {"bits_per_token": np.zeros(3), "draft_s_per_token": np.zeros(3)},
    "zero bits, header": {"bits_per_token": np.zeros(3), "bits_per_draft": np.full(3, 1e4)},
    "no band": {"bandwidth_hz": 1e-9},
    "endless band": {"bandwidth_hz": 1e18},
    "ten orders in speed": {"draft_s_per_token": np.array([1e-8, 1e-3, 1e2])},
    "ten orders in bits": {"bits_per_token": np.array([1e-2, 1e3, 1e8])},
    "ten orders in rate": {"uplink": ConstantEfficiency(np.array([1e-6, 1.0, 1e4]))},
    "ten orders in power": {"uplink": BandwidthNoise(np.array([1e0, 1e5, 1e10]))},
    "length 0 only": {"max_draft_length": 0},
    "length 1": {"max_draft_length": 1},
    "length 60": {"max_draft_length": 60, "acceptance": np.array([0.99, 0.9, 1.0])},
    "verification nearly free": {"verify_fixed_s": 1e-9, "verify_per_device_s": 0.0},
    "verification endless": {"verify_fixed_s": 1e6},
    "tokens cost everything": {"verify_per_token_s": 10.0},
    "far away": {"round_trip_s": 10.0},
    "must draft": {"min_draft_length": 10},
    "everything at once": {
        "draft_s_per_token": np.array([0.0, 1e-9, 10.0]),
        "acceptance": np.array([1.0, 0.0, 0.999999]),
        "bits_per_token": np.array([0.0, 1e9, 1.0]),
        "bits_per_draft": np.array([1e6, 0.0, 1.0]),
    },
}


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_are_solved(name, noisy):
    """Warnings are errors here; the optimum is still the optimum."""
    changes = dict(EXTREMES[name])
    if noisy and "uplink" not in changes:
        changes["uplink"] = BandwidthNoise(np.array([1e6, 3e5, 1e7]))
    problem = small(**changes)
    best = solve(problem, "exhaustive").goodput_tokens_per_s
    for policy in ALL:
        plan = solve(problem, policy)
        assert np.isfinite(plan.goodput_tokens_per_s)
        assert np.isfinite(plan.bandwidths_hz).all()
        assert plan.bandwidths_hz.sum() <= problem.bandwidth_hz * (1 + 1e-9)
        assert plan.goodput_tokens_per_s <= best * (1 + 1e-9)
    assert solve(problem).goodput_tokens_per_s >= best * (1 - 1e-4)


def test_one_device_takes_the_band():
    rng = np.random.default_rng(0)
    problem = replace(random_cell(rng, 1), acceptance=np.array([0.95]))
    plan = solve(problem)
    if problem.draft_bits(plan.lengths).any():
        assert plan.bandwidths_hz[0] == pytest.approx(problem.bandwidth_hz)


def test_a_thousand_tokens_long():
    problem = small(
        max_draft_length=1000,
        acceptance=np.array([1.0, 1 - 1e-6, 0.9]),
        draft_s_per_token=np.full(3, 1e-5),
        bits_per_token=np.full(3, 18.0),
        verify_fixed_s=1.0,
    )
    plan = solve(problem)
    assert plan.lengths[0] > 900 and plan.lengths[2] < 200
    for policy in ALL:
        assert plan.goodput_tokens_per_s >= solve(problem, policy).goodput_tokens_per_s


def test_more_of_a_good_thing_never_hurts():
    rng = np.random.default_rng(4)
    for _ in range(20):
        problem = random_cell(rng, 3)
        goodput = solve(problem).goodput_tokens_per_s
        better = replace(problem, bandwidth_hz=problem.bandwidth_hz * 1.5)
        assert solve(better).goodput_tokens_per_s >= goodput * (1 - 1e-4)
        better = replace(problem, draft_s_per_token=problem.draft_s_per_token * 0.7)
        assert solve(better).goodput_tokens_per_s >= goodput * (1 - 1e-4)
        better = replace(problem, verify_fixed_s=problem.verify_fixed_s * 0.5)
        assert solve(better).goodput_tokens_per_s >= goodput * (1 - 1e-4)


def paper_means(pair, num_devices, bandwidth, draws=40):
    """Mean goodput by policy; the ordering that holds on every cell is checked on the way."""
    rows = []
    for seed in range(draws):
        problem = paper_cell(np.random.default_rng(seed), num_devices, bandwidth, pair)
        goodput = {name: solve(problem, name).goodput_tokens_per_s for name in ALL}
        assert goodput["heterogeneous"] >= goodput["length-only"] * (1 - 1e-12)
        assert goodput["heterogeneous"] >= goodput["homogeneous"] * (1 - 1e-12)
        assert goodput["homogeneous"] >= goodput["bandwidth-only"] * (1 - 1e-12)
        assert goodput["bandwidth-only"] >= goodput["fixed"] * (1 - 1e-12)
        rows.append(goodput)
    return {name: float(np.mean([row[name] for row in rows])) for name in ALL}


@pytest.mark.parametrize("pair", ["llama", "qwen"])
def test_the_papers_ordering_and_gains(pair):
    """+88 % over fixed at 5 MHz; more with more devices; equal bandwidth above equal length.

    The deviation of the mean gain over 40 draws is about 10 points, so 50 to 140 % fails by
    chance less than once in a thousand seeds, and these seeds are fixed.
    """
    scarce = paper_means(pair, 20, 5e6)
    assert 1.5 < scarce["heterogeneous"] / scarce["fixed"] < 2.4
    assert scarce["length-only"] > scarce["homogeneous"]
    few, many = paper_means(pair, 10, 10e6), paper_means(pair, 24, 10e6)
    gain_few, gain_many = (m["heterogeneous"] / m["fixed"] for m in (few, many))
    assert gain_many > gain_few > 1.15


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("draft_s_per_token", np.array([0.1, -1.0, 0.1]), "0 or more"),
        ("acceptance", np.array([0.1, 1.01, 0.1]), r"\[0, 1\]"),
        ("acceptance", np.array([0.1, np.nan, 0.1]), "finite"),
        ("bits_per_token", np.ones(2), "must hold 3"),
        ("bandwidth_hz", 0.0, "positive"),
        ("verify_fixed_s", -0.1, "0 or more"),
        ("min_draft_length", 11, "at least min_draft_length"),
        ("min_draft_length", -1, "0 or more"),
    ],
)
def test_illegal_numbers_are_named(field, value, complaint):
    with pytest.raises(BadInput, match=complaint):
        small(**{field: value})


def test_a_pass_must_take_time_and_a_cell_needs_devices():
    with pytest.raises(BadInput, match="must take time"):
        small(verify_fixed_s=0.0, verify_per_device_s=0.0)
    none = np.zeros(0)
    with pytest.raises(BadInput, match="at least one device"):
        Problem(none, none, none, none, ConstantEfficiency(none), 1e6, 0.1)
