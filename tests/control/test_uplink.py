"""One uplink on several replicas: within the budget, fair to the new, near the best split."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from multispin.control import Problem, solve
from multispin.control.uplink import LEAST, MOST_CHANGE, SPAN, split_uplink
from multispin.radio.channel import ConstantEfficiency

STEPS = 30
ANY = st.one_of(st.floats(0, 1), st.floats(allow_nan=True, allow_infinity=True))


@st.composite
def steps(draw):
    num = draw(st.integers(1, 6))
    return (
        draw(st.one_of(st.just(1.0), st.floats(0, 1e12, allow_subnormal=False))),
        draw(arrays(np.int64, num, elements=st.integers(0, 50))),
        draw(arrays(np.float64, num, elements=ANY)),
        draw(arrays(np.float64, num, elements=ANY)),
    )


@settings(max_examples=500)
@given(steps())
def test_whatever_replicas_say_the_shares_keep_to_the_budget(step):
    budget, num_devices, present, price = step
    shares = split_uplink(budget, num_devices, present, price)
    assert np.isfinite(shares).all() and (shares >= 0).all()
    wanted = budget if num_devices.any() else 0.0
    assert shares.sum() == pytest.approx(wanted, rel=1e-9)
    assert (shares[num_devices == 0] == 0).all()
    least = LEAST * budget * num_devices / max(num_devices.sum(), 1)
    assert (shares >= least * (1 - 1e-9)).all()


def test_without_prices_shares_go_by_devices():
    num_devices = np.array([3, 0, 1])
    shares = split_uplink(100.0, num_devices, np.array([10.0, 80.0, 10.0]), np.zeros(3))
    assert shares.tolist() == [75.0, 0.0, 25.0]


def test_a_new_replica_has_its_share_at_once():
    shares = split_uplink(100.0, np.array([2, 1, 1]), np.array([70.0, 30.0, 0.0]), np.ones(3))
    assert shares[2] == pytest.approx(25.0)
    assert shares[0] / shares[1] == pytest.approx(7 / 3), "the others keep their proportion"


def test_one_step_changes_no_share_by_much():
    present = np.array([50.0, 30.0, 20.0])
    shares = split_uplink(100.0, np.ones(3, np.int64), present, np.array([1e9, 1.0, 1e-9]))
    ratio = shares / present
    assert ratio.max() / ratio.min() <= MOST_CHANGE**2 + 1e-9
    assert ratio[0] > ratio[1] > ratio[2] or ratio[1] == ratio[2]


@given(
    st.lists(st.floats(0.1, 10), min_size=2, max_size=6),
    st.sampled_from([0.2, 0.5, 0.8, 0.0, -0.5, -2.0]),
    st.integers(0, 2**32),
)
def test_prices_become_equal_from_any_start(weights, power, seed):
    """G = w b^a / a, or w log b: the best shares have w b^(a-1) equal, so b ~ w^(1/(1-a)), but for
    those that are held at their least."""
    weight = np.array(weights)
    num_devices = np.ones(len(weight), np.int64)
    shares = np.random.default_rng(seed).dirichlet(np.full(len(weight), 0.3))
    for _ in range(400):
        price = weight * np.maximum(shares, 1e-9) ** (power - 1)
        shares = split_uplink(1.0, num_devices, shares, price)
    price = weight * shares ** (power - 1)
    held = shares <= LEAST / len(weight) * (1 + 1e-6)
    highest = price[~held].max()
    assert price[~held] == pytest.approx(highest, rel=1e-3)
    assert (price[held] <= highest * (1 + 1e-3)).all()


# --- with the real solver ------------------------------------------------------------------------


def cell(rng: np.random.Generator) -> Problem:
    """Devices of one replica, none like the other."""
    num = int(rng.integers(4, 13))
    return Problem(
        draft_s_per_token=rng.uniform(0.005, 0.04, num),
        acceptance=np.clip(rng.beta(5, 2, num), 0.05, 0.97),
        bits_per_token=np.full(num, 18.0),
        bits_per_draft=np.full(num, 200.0),
        uplink=ConstantEfficiency(rng.uniform(1, 8, num)),
        bandwidth_hz=1.0,
        verify_fixed_s=float(rng.uniform(0.02, 0.1)),
        verify_per_token_s=float(rng.choice([0.0, 0.0005, 0.002])),
        max_draft_length=10,
    )


def goodput(problem: Problem, budget: float) -> float:
    return solve(replace(problem, bandwidth_hz=budget)).goodput_tokens_per_s


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_the_split_is_near_the_best_from_any_start(seed):
    """Two replicas and three; the best split of a fine grid that keeps to the least shares."""
    rng = np.random.default_rng(seed)
    cells = [cell(rng) for _ in range(2 + seed % 2)]
    num_devices = np.array([problem.num_devices for problem in cells])
    budget = float(rng.uniform(60, 400) * num_devices.sum())

    def total(shares: np.ndarray) -> float:
        return sum(goodput(problem, b) for problem, b in zip(cells, shares.tolist(), strict=True))

    best = max(map(total, grid(budget, num_devices)))
    for favoured in range(len(cells)):
        shares = np.full(len(cells), 1e-3 * budget)
        shares[favoured] = budget
        for _ in range(STEPS):
            pairs = zip(cells, shares.tolist(), strict=True)
            price = np.array([price_of(problem, share) for problem, share in pairs])
            shares = split_uplink(budget, num_devices, shares, price)
        assert total(shares) >= 0.99 * best


def price_of(problem: Problem, share: float) -> float:
    more, less = SPAN * share, share / SPAN
    return (goodput(problem, more) - goodput(problem, less)) / (more - less)


def grid(budget: float, num_devices: np.ndarray) -> list[np.ndarray]:
    num_points = 81 if len(num_devices) == 2 else 21
    parts = np.linspace(0, 1, num_points)
    least = LEAST * num_devices / num_devices.sum()
    found = []
    for first in itertools.product(parts, repeat=len(num_devices) - 1):
        split = np.array([*first, 1 - sum(first)])
        if (split >= least).all():
            found.append(budget * split)
    return found
