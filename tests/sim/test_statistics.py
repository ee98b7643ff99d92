"""Measures of a trace: by hand on a small one, by plain loops and by theory on simulated ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from multispin.cell import Energy
from multispin.sim.rounds import simulate_rounds
from multispin.sim.statistics import Statistics
from multispin.sim.trace import Trace
from tests.sim.cells import cell

PHONES = cell()


def by_hand(**changes) -> Trace:
    """Two devices, three passes; the second device waits for the last two."""
    columns = {
        "names": ("a", "b"),
        "simulated_s": 10.0,
        "device": np.array([0, 0, 1, 0, 1], np.int32),
        "round": np.array([0, 1, 1, 2, 2], np.int32),
        "at_s": np.array([2.0, 5.0, 5.0, 10.0, 10.0]),
        "num_draft": np.array([2, 4, 0, 4, 3], np.int32),
        "num_accepted": np.array([1, 4, 0, 0, 3], np.int32),
        "num_committed": np.array([2, 5, 1, 1, 4], np.int32),
        "bandwidth_hz": np.array([1, 1, 0, 1, 1], np.float32),
        "draft_s": np.array([0.5, 1.0, 0.0, 1.0, 2.0], np.float32),
        "upload_s": np.array([0.25, 0.5, 0.0, 0.5, 1.0], np.float32),
        "pass_start_s": np.array([1.0, 4.0, 8.5]),
        "pass_s": np.array([1.0, 1.0, 1.0]),
        "pass_rows": np.array([3, 6, 9], np.int32),
    }
    return Trace(**{**columns, **changes})


def two_devices(trace: Trace) -> Statistics:
    few = replace(
        PHONES,
        names=trace.names,
        answer_tokens=np.array([6, 5]),
        energy=Energy(
            np.array([4.0, 2.0]), np.array([8.0, 1.0]), np.array([0.1, 0.2]), 100.0, 10.0
        ),
    )
    return Statistics(trace, few)


def test_means_by_hand() -> None:
    measured = two_devices(by_hand())
    assert measured.tokens.tolist() == [8, 5]
    assert measured.device_goodput_tokens_per_s.tolist() == [0.8, 0.5]
    assert measured.goodput.tokens_per_s == 1.3
    assert measured.mean_draft_length.tolist() == [10 / 3, 1.5]
    assert measured.mean_acceptance_length.tolist() == [8 / 3, 2.5]
    assert measured.round_s_mean == 10 / 3


def test_the_error_of_the_goodput_by_hand() -> None:
    """From end to end 2, 3 and 5 s, with 2, 6 and 5 tokens: N - G T = -0.6, 2.1, -1.5."""
    goodput = two_devices(by_hand()).goodput
    assert goodput.num_batches == 3
    squares = 0.6**2 + 2.1**2 + 1.5**2
    assert goodput.stderr == pytest.approx((squares / 6) ** 0.5 / (10 / 3))


def test_waits_by_hand() -> None:
    measured = two_devices(by_hand())
    # of device a: 2 tokens of 1 s, 5 of 0.6 s, 1 of 5 s
    assert measured.device_time_per_token_s[0] == pytest.approx((0.6, 5.0, 5.0))
    # of device b: 1 token of 5 s, 4 of 1.25 s
    assert measured.device_time_per_token_s[1] == pytest.approx((1.25, 5.0, 5.0))
    # a has its 6 tokens at 5 s, and then 1; b has its 5 at 10 s
    assert [q.p50 for q in measured.device_answer_s] == [5.0, 10.0]
    assert measured.answer_s == (5.0, 10.0, 10.0)


def test_energy_by_hand() -> None:
    measured = two_devices(by_hand())
    a = 4.0 * 2.5 + 8.0 * 1.25 + 0.1 * (10 - 3.75)
    b = 2.0 * 2.0 + 1.0 * 1.0 + 0.2 * (10 - 3)
    assert measured.device_joules.tolist() == pytest.approx([a, b])
    assert measured.device_joules_per_token.tolist() == pytest.approx([a / 8, b / 5])
    assert measured.devices_joules_per_token == pytest.approx((a + b) / 13)
    assert measured.server_joules_per_token == pytest.approx((100 * 3 + 10 * 7) / 13)
    assert measured.has_energy and not Statistics(by_hand(), PHONES).has_energy


def test_drafting_beside_uploads_leaves_no_time_below_zero() -> None:
    busy = two_devices(by_hand(draft_s=np.full(5, 5.0, np.float32)))
    assert busy.device_joules[0] == pytest.approx(4.0 * 15 + 8.0 * 1.25)


def test_a_device_without_a_verdict_has_no_waits_and_no_price() -> None:
    trace = by_hand(names=("a", "b", "c"))
    three = two_devices(trace)
    energy = Energy(np.ones(3), np.ones(3), np.ones(3), 1.0, 1.0)
    three = Statistics(trace, replace(three.cell, answer_tokens=np.array([6, 5, 5]), energy=energy))
    assert three.tokens.tolist() == [8, 5, 0]
    assert three.device_time_per_token_s[2] == (None, None, None)
    assert three.device_answer_s[2] == (None, None, None)
    assert np.isnan(three.device_joules_per_token[2]) and three.device_joules[2] == 10.0
    assert np.isnan(three.mean_acceptance_length[2])
    assert three.device_time_per_token_s[1] == two_devices(by_hand()).device_time_per_token_s[1]


def test_one_pass_has_no_error() -> None:
    measured = Statistics(simulate_rounds(PHONES, "heterogeneous", 1, 0), PHONES)
    assert measured.goodput.stderr is None and measured.goodput.tokens_per_s > 0


def test_sums_and_plain_loops_agree() -> None:
    trace = simulate_rounds(PHONES, "heterogeneous", 500, 7)
    measured = Statistics(trace, PHONES)
    assert measured.tokens.sum() == trace.num_tokens
    assert measured.goodput.tokens_per_s == pytest.approx(measured.tokens.sum() / trace.simulated_s)
    everybody = []
    for k in range(4):
        waits, answers = _waits(trace, k, 128)
        everybody += waits
        assert np.mean(waits) == pytest.approx(1 / measured.device_goodput_tokens_per_s[k])
        expected = np.quantile(waits, (0.5, 0.95, 0.99), method="inverted_cdf")
        assert measured.device_time_per_token_s[k] == pytest.approx(tuple(expected))
        expected = np.quantile(answers, (0.5, 0.95, 0.99), method="inverted_cdf")
        assert measured.device_answer_s[k] == pytest.approx(tuple(expected))
    expected = np.quantile(everybody, (0.5, 0.95, 0.99), method="inverted_cdf")
    assert measured.time_per_token_s == pytest.approx(tuple(expected))


def _waits(trace: Trace, device: int, answer_tokens: int) -> tuple[list[float], list[float]]:
    """Token by token, answer by answer."""
    waits, answers = [], []
    last = begun = 0.0
    written = 0
    for i in np.flatnonzero(trace.device == device):
        now, num = float(trace.at_s[i]), int(trace.num_committed[i])
        waits += [(now - last) / num] * num
        last = now
        written += num
        if written >= answer_tokens:
            answers.append(now - begun)
            begun, written = now, 0
    return waits, answers


def test_the_error_is_the_spread_over_seeds() -> None:
    """(n-1) s^2/sigma^2 summed over 40 seeds is chi-square of 40 * 29: 1e-6 at either end.

    Numbers of tokens in a batch are so many that they are normal; rounds are of one length.
    """
    cells = [Statistics(simulate_rounds(PHONES, "fixed", 900, seed), PHONES) for seed in range(40)]
    tokens = np.array([m.trace.num_committed.reshape(900, 4).sum(axis=1) for m in cells])
    round_s = cells[0].round_s_mean
    variance = tokens.var() / 900 / round_s**2
    ratio = sum(m.goodput.stderr**2 for m in cells) / variance * 29
    assert stats.chi2.ppf(1e-6, 40 * 29) < ratio < stats.chi2.isf(1e-6, 40 * 29)
