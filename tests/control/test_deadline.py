"""The model against a scalar re-derivation; the bandwidth split against random others."""

from __future__ import annotations

import numpy as np
import pytest
from random_cells import random_cell

from multispin.control import bandwidth_for, evaluate, expected_tokens
from multispin.control.deadline import bandwidth_needed, least_deadline


@pytest.mark.parametrize("acceptance", [0.0, 1e-9, 0.3, 0.74, 0.999, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 25])
def test_expected_tokens_by_enumeration(acceptance, length):
    """First rejection after j accepted drafts leaves j + 1 tokens; none rejected leaves L + 1."""
    mean = sum(acceptance**j * (1 - acceptance) * (j + 1) for j in range(length))
    mean += acceptance**length * (length + 1)
    found = expected_tokens(np.array([acceptance]), np.array([length]))[0]
    assert found == pytest.approx(mean, rel=1e-9)


def by_hand(problem, lengths, bandwidths):
    """The page's formula, one device at a time."""
    worst, tokens = 0.0, 0.0
    for k in range(problem.num_devices):
        length, share = int(lengths[k]), np.asarray(bandwidths, dtype=float)
        rate = problem.uplink.rate(share)[k]
        bits = problem.bits_per_token[k] * length
        if length > 0:
            bits += problem.bits_per_draft[k]
        upload = bits / rate if bits > 0 else 0.0
        worst = max(worst, length * problem.draft_s_per_token[k] + upload)
        tokens += sum(problem.acceptance[k] ** i for i in range(length + 1))
    verify = problem.verify_fixed_s + problem.verify_per_device_s * problem.num_devices
    verify += problem.verify_per_token_s * sum(int(length) + 1 for length in lengths)
    trip = problem.round_trip_s if any(lengths) else 0.0
    round_s = worst + verify + trip
    return tokens / round_s, round_s


@pytest.mark.parametrize("seed", range(100))
def test_evaluate_by_hand_and_budget(seed):
    rng = np.random.default_rng(seed)
    problem = random_cell(rng, int(rng.integers(1, 9)))
    lengths = rng.integers(0, 11, problem.num_devices)
    plan = bandwidth_for(problem, lengths)
    goodput, round_s = by_hand(problem, lengths, plan.bandwidths_hz)
    assert plan.goodput_tokens_per_s == pytest.approx(goodput, rel=1e-11)
    assert plan.round_s == pytest.approx(round_s, rel=1e-11)
    assert plan.bandwidths_hz.sum() <= problem.bandwidth_hz * (1 + 1e-9)
    assert (plan.bandwidths_hz >= 0).all()
    assert (plan.bandwidths_hz[lengths == 0] == 0).all()


@pytest.mark.parametrize("seed", range(60))
def test_deadline_is_the_root_and_no_other_split_is_earlier(seed):
    rng = np.random.default_rng(seed)
    problem = random_cell(rng, int(rng.integers(2, 9)))
    lengths = rng.integers(0, 11, problem.num_devices)
    plan = bandwidth_for(problem, lengths)
    deadline = float(least_deadline(problem, lengths))
    assert (plan.draft_s + plan.upload_s).max() == pytest.approx(deadline, rel=1e-9, abs=1e-15)
    if deadline > 0:
        earlier = bandwidth_needed(problem, lengths, np.array([deadline * (1 - 1e-9)])).sum()
        assert not earlier <= problem.bandwidth_hz * (1 - 1e-6)
    drafts = np.flatnonzero(problem.draft_bits(lengths) > 0)
    for _ in range(10):
        other = np.zeros(problem.num_devices)
        other[drafts] = rng.dirichlet(np.full(len(drafts), 2.0)) if len(drafts) else 0
        rival = evaluate(problem, lengths, other * problem.bandwidth_hz)
        assert rival.round_s >= plan.round_s * (1 - 1e-12)


def test_deadlines_of_many_rows_are_those_of_each():
    rng = np.random.default_rng(1)
    problem = random_cell(rng, 5)
    rows = rng.integers(0, 11, (40, 5))
    together = least_deadline(problem, rows)
    alone = [float(least_deadline(problem, row)) for row in rows]
    assert together == pytest.approx(alone, rel=1e-13)


def test_nobody_drafts_without_delay_wherever_the_search_starts():
    problem = random_cell(np.random.default_rng(1), 5)
    nobody = np.zeros((2, 5), dtype=np.int64)
    assert least_deadline(problem, nobody, near=np.array([0.3, 1e-9])).tolist() == [0, 0]
