"""Rounds: the planned goodput, fading, what the planner knows, what cannot be simulated."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from multispin.control import POLICIES, Objective, Plan, solve
from multispin.control.problem import Outage
from multispin.errors import BadInput
from multispin.radio.fading import FadingChannel, NeverSent
from multispin.sim.rounds import simulate_rounds
from multispin.sim.statistics import Statistics
from multispin.sim.streams import random_streams
from multispin.sim.trace import Trace
from tests.control.random_cells import random_cell
from tests.sim.cells import cell, cell_of

NUM_CELLS, NUM_ROUNDS = 20, 1500


@cache
def simulated() -> list[tuple[str, Plan, np.ndarray, Trace]]:
    """Random cells under every policy, with the variance of each device's tokens in a round."""
    rng = np.random.default_rng(2024)
    found = []
    for policy in POLICIES:
        for number in range(NUM_CELLS):
            few = policy == "exhaustive"
            problem = random_cell(rng, int(rng.integers(1, 4 if few else 9)), 4 if few else 10)
            # a promise that the server alone keeps, and drafting must not break
            rare = (problem.acceptance > 0) & (problem.acceptance < 1)
            likely = np.clip(problem.acceptance, 0.02, 0.98)  # 30 of either kind, at least
            problem = replace(problem, acceptance=np.where(rare, likely, problem.acceptance))
            alone_s = solve(problem, "server-only").round_s
            problem = replace(problem, objective=Objective(outage=Outage(95, 100 * alone_s, 0.3)))
            plan = solve(problem, policy)
            trace = simulate_rounds(cell_of(problem), policy, NUM_ROUNDS, number)
            variance = [
                _variance(*device) for device in zip(problem.acceptance, plan.lengths, strict=True)
            ]
            found.append((policy, plan, np.array(variance), trace))
    return found


def _variance(acceptance: float, length: int) -> float:
    """Of the accepted tokens i = 0..L of one draft, from their probabilities."""
    i = np.arange(length + 1)
    chance = acceptance**i * np.where(i < length, 1 - acceptance, 1.0)
    return float(chance @ i**2 - (chance @ i) ** 2)


def _chance(committed) -> float:
    """Sum of z^2 of goodput against its plan: the chance of one as far out, on either side."""
    squares, policies = [], Counter()
    for policy, plan, variance, trace in simulated():
        if variance.sum() > 0:
            goodput = committed(trace).sum() / trace.simulated_s
            error = (variance.sum() / NUM_ROUNDS) ** 0.5 / plan.round_s
            squares.append((goodput - plan.goodput_tokens_per_s) ** 2 / error**2)
            policies[policy] += 1
    assert len(policies) == len(POLICIES) and min(policies.values()) > 4, policies
    chance = stats.chi2.cdf(sum(squares), len(squares))
    return 2 * min(chance, 1 - chance)


def test_simulated_goodput_is_the_planned_goodput() -> None:
    """One joint chi-square test over all policies and cells: fails by chance once in a million."""
    assert _chance(lambda trace: trace.num_committed) > 1e-6


def test_the_joint_test_would_notice_a_token() -> None:
    """The bonus left out; one token lost in a hundred verdicts."""
    assert _chance(lambda t: t.num_accepted + (t.num_accepted < t.num_draft)) < 1e-6
    assert _chance(lambda t: t.num_committed - (np.arange(len(t.device)) % 100 == 0)) < 1e-6


def test_where_nothing_is_random_in_a_round_goodput_is_exact_and_so_is_the_round() -> None:
    for _, plan, variance, trace in simulated():
        assert trace.simulated_s / NUM_ROUNDS == pytest.approx(plan.round_s, rel=1e-9)
        if variance.sum() == 0:
            goodput = trace.num_tokens / trace.simulated_s
            assert goodput == pytest.approx(plan.goodput_tokens_per_s, rel=1e-9)
    assert sum(variance.sum() == 0 for _, _, variance, _ in simulated()) > 20


def test_an_upload_over_many_blocks_has_the_ergodic_rate() -> None:
    """A draft takes 100 blocks or so: within 2 % of the plan, which knows the mean alone."""
    fading = 'snr_db = 10\nfading = "rayleigh"\ncoherence_s = 1e-3'
    phones = cell(channel=fading)
    trace = simulate_rounds(phones, "fixed", 300, 0)
    planned = solve(phones.problem, "fixed")
    assert Statistics(trace, phones).round_s_mean == pytest.approx(planned.round_s, rel=0.02)
    assert trace.upload_s.max() > 0.1


def test_uploads_go_through_the_channel_when_the_drafts_are_ready() -> None:
    phones = cell(channel='snr_db = 10\nfading = "rayleigh"\ncoherence_s = 0.01')
    plan = solve(phones.problem, "fixed")
    trace = simulate_rounds(phones, "fixed", 1, 3)
    channel = FadingChannel(phones.radio, random_streams(3).fading)
    bits = phones.problem.draft_bits(plan.lengths)
    done_s = channel.transmit(plan.draft_s, bits, plan.bandwidths_hz)
    assert trace.upload_s == pytest.approx(done_s - plan.draft_s, rel=1e-6)


def test_a_planner_that_sees_the_gains_plans_for_them() -> None:
    """Blocks that outlast the simulation: the plan of these gains, in every round."""
    fading = 'snr_db = 10\nfading = "rayleigh"\ncoherence_s = 1e6'
    phones = cell(channel=fading, cell='csi = "instantaneous"')
    for seed in range(3):
        trace = simulate_rounds(phones, "heterogeneous", 20, seed)
        gain = FadingChannel(phones.radio, random_streams(seed).fading).gain(0.0)
        plan = solve(replace(phones.problem, uplink=phones.radio.uplink(gain)))
        assert (trace.num_draft.reshape(20, 4) == plan.lengths).all()
        assert trace.bandwidth_hz.reshape(20, 4) == pytest.approx(
            np.tile(plan.bandwidths_hz, (20, 1)), rel=1e-6
        )
        assert Statistics(trace, phones).round_s_mean == pytest.approx(plan.round_s, rel=1e-9)


def test_a_planner_that_sees_the_gains_plans_anew_when_they_change() -> None:
    fading = 'snr_db = 10\nfading = "rayleigh"\ncoherence_s = 1.0'
    seeing = cell(channel=fading, cell='csi = "instantaneous"')
    bandwidths = simulate_rounds(seeing, "heterogeneous", 200, 0).bandwidth_hz.reshape(200, 4)
    num_changes = (np.diff(bandwidths, axis=0) != 0).any(axis=1).sum()
    assert 20 < num_changes < 199  # some rounds end in the blocks in which they begin
    blind = simulate_rounds(cell(channel=fading), "heterogeneous", 200, 0)
    assert (np.diff(blind.bandwidth_hz.reshape(200, 4), axis=0) == 0).all()


OUT_AT_TIMES = (
    'snr_db = 10\nfading = "rayleigh"\ncoherence_s = {coherence_s}\nmin_rate_bits_per_s = 8e5'
)


def test_in_an_outage_who_sees_it_leaves_the_device_to_the_server_and_who_does_not_waits() -> None:
    fading = OUT_AT_TIMES.format(coherence_s=5.0)
    seeing = cell(channel=fading, cell='csi = "instantaneous"')
    wise = simulate_rounds(seeing, "heterogeneous", 200, 0)
    lengths = wise.num_draft.reshape(200, 4)[:, :3]
    assert (lengths == 0).any() and (lengths > 0).any()
    plain = simulate_rounds(cell(channel=fading), "fixed", 200, 0)
    assert plain.num_draft.min() == 8
    assert plain.upload_s.max() > 1.0 > wise.upload_s.max()


def test_a_fade_that_breaks_the_promised_minimum_is_gone_through_without_drafts() -> None:
    fading = 'snr_db = 20\nfading = "rayleigh"\ncoherence_s = 0.5'
    seeing = cell(channel=fading, cell='csi = "instantaneous"')
    alone = solve(seeing.problem, "server-only").goodput_tokens_per_s / 4
    promise = replace(
        seeing.problem,
        draft_s_per_token=seeing.problem.draft_s_per_token / 10,
        objective=Objective(min_goodput_tokens_per_s=1.1 * alone),
    )
    trace = simulate_rounds(replace(seeing, problem=promise), "heterogeneous", 200, 0)
    drafted = (trace.num_draft.reshape(200, 4) > 0).sum(axis=1)
    assert set(drafted.tolist()) == {0, 4}


def test_texts_are_the_same_under_every_policy() -> None:
    """Those who write a first answer without a rejection under one do so under all."""
    phones = cell(device="acceptance_model = {kind = 'markov', correlation = 0.95}")
    first = [
        simulate_rounds(phones, policy, 1, seed).num_accepted > 0
        for policy in ("fixed", "bandwidth-only")
        for seed in range(20)
    ]
    assert all((a == b).all() for a, b in zip(first[:20], first[20:], strict=True))


def test_shadowing_is_drawn_once_for_each_seed() -> None:
    model = 'model = "umi"\ndistance_m = 150\ncarrier_hz = 3.5e9\ntransmit_power_dbm = 20'
    phones = cell(channel=model)
    lengths = set()
    for seed in range(4):
        trace = simulate_rounds(phones, "fixed", 10, seed)
        uploads = trace.upload_s.reshape(10, 4)
        assert uploads == pytest.approx(np.tile(uploads[0], (10, 1)), rel=1e-5)
        lengths.add(float(uploads[0, 0]))
    assert len(lengths) == 4


@pytest.mark.parametrize("fading", ["", '\nfading = "rayleigh"\ncoherence_s = 0.05'])
def test_a_device_that_never_gets_a_rate_is_named(fading: str) -> None:
    hopeless = cell(channel=f"snr_db = 10\nmin_rate_bits_per_s = 1e9{fading}")
    with pytest.raises(NeverSent, match=r"'phone-1'.*min_rate_bits_per_s"):
        simulate_rounds(hopeless, "fixed", 10, 0)
    left = simulate_rounds(hopeless, "heterogeneous", 10, 0).num_draft.reshape(10, 4)
    assert (left[:, :3] == 0).all()


@pytest.mark.parametrize("num_rounds", [0, -1, 10**9])
def test_numbers_of_rounds_that_make_no_sense(num_rounds: int) -> None:
    with pytest.raises(BadInput, match="--rounds"):
        simulate_rounds(cell(), "fixed", num_rounds, 0)


def test_progress_rises_to_the_end() -> None:
    calls = []
    simulate_rounds(cell(), "fixed", 1000, 0, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (1000, 1000) and calls == sorted(calls) and 50 < len(calls) <= 200
