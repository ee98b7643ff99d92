"""Windows of a trace against the law itself, and the Gaussian beside them."""

from __future__ import annotations

import numpy as np
import pytest

from multispin.control import Outage, exact_outage, planned_outage
from multispin.sim.outage import Windows, device_windows, draw_outage, inference_outage
from multispin.sim.trace import Trace

ROUND_S = 0.25


def committed(rng, acceptance, length, num_rounds):
    """Truncated geometric numbers: accepted drafts, and one."""
    return 1 + np.minimum(rng.geometric(1 - acceptance, num_rounds) - 1, length)


def trace_of(at_s, tokens):
    """Device k got ``tokens[k]`` at ``at_s[k]`` [K, rounds]; what else a trace has is 0."""
    num_devices, num_rounds = tokens.shape
    order = np.argsort(at_s, axis=None, kind="stable")
    none = np.zeros(tokens.size)
    return Trace(
        names=tuple(f"device-{k}" for k in range(num_devices)),
        simulated_s=float(at_s.max()),
        device=np.repeat(np.arange(num_devices, dtype=np.int32), num_rounds)[order],
        round=np.tile(np.arange(num_rounds, dtype=np.int32), num_devices)[order],
        at_s=at_s.ravel()[order],
        num_draft=none.astype(np.int32),
        num_accepted=(tokens.ravel() - 1)[order].astype(np.int32),
        num_committed=tokens.ravel()[order].astype(np.int32),
        bandwidth_hz=none.astype(np.float32),
        draft_s=none.astype(np.float32),
        upload_s=none.astype(np.float32),
        pass_start_s=at_s[0],
        pass_s=np.zeros(num_rounds),
        pass_rows=np.zeros(num_rounds, dtype=np.int32),
    )


def paper_rounds(seed, acceptance, length, num_rounds):
    rng = np.random.default_rng(seed)
    tokens = np.array([committed(rng, a, length, num_rounds) for a in acceptance])
    at_s = np.cumsum(np.full(num_rounds, ROUND_S))
    return trace_of(np.broadcast_to(at_s, tokens.shape), tokens)


def test_windows_by_hand():
    """Verdicts at 1, 2, 3, 5 and 6 s: windows of 2 s from 1, 2 and 3; that from 5 is not over."""
    windows = Windows(np.array([1.0, 2, 3, 5, 6]), np.array([9, 1, 4, 2, 7]), 2.0)
    assert windows.tokens.tolist() == [1 + 4, 4, 2]
    assert windows.num_apart == 2
    assert windows.simulated(5)[0] == pytest.approx(2 / 3)
    assert windows.simulated([2, 3, 6])[0].tolist() == [0, pytest.approx(1 / 3), 1]


@pytest.mark.parametrize("seed", range(5))
def test_windows_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1.0, 60))
    tokens = rng.integers(1, 9, 60)
    deadline_s = rng.uniform(0.5, 8)
    expected = [
        sum(tokens[(at_s > start) & (at_s <= start + deadline_s)])
        for start in at_s
        if start + deadline_s <= at_s[-1]
    ]
    assert Windows(at_s, tokens, deadline_s).tokens.tolist() == expected


def test_a_verdict_at_the_deadline_is_in_time_whatever_rounding_says():
    at_s = np.cumsum(np.full(1000, 0.1))  # 0.1 ten times is not 1
    windows = Windows(at_s, np.ones(1000), 1.0)
    assert set(windows.tokens.tolist()) == {10}


def test_simulated_outage_is_that_of_the_exact_law():
    """24 estimates, each within 5 of its own errors of 20 batches: by chance one in 500 seeds."""
    acceptance, length, deadline_s = (0.4, 0.7, 0.9), 5, 12 * ROUND_S + 0.1
    trace = paper_rounds(0, acceptance, length, 20_000)
    for a, windows in zip(acceptance, device_windows(trace, deadline_s), strict=True):
        middle = np.median(windows.tokens)
        tokens = np.unique(np.linspace(0.8 * middle, 1.1 * middle, 8).round().astype(int))
        share, stderr = windows.simulated(tokens)
        exact = np.array([exact_outage(a, length, 12, int(n)) for n in tokens])
        assert (np.abs(share - exact) < 5 * stderr).all()
        assert (stderr < 0.02).all()


def test_the_error_is_what_repetition_shows():
    """The deviation over 300 traces is known to 4 %, the mean error given to 1 %."""
    outage = Outage(tokens=25, deadline_s=10 * ROUND_S, max_probability=0.1)
    found = [inference_outage(paper_rounds(seed, (0.7,), 5, 3000), outage) for seed in range(300)]
    simulated = np.array([row.simulated[0] for row in found])
    errors = np.array([row.stderr[0] for row in found])
    assert 0.05 < simulated.mean() < 0.5
    assert errors.mean() == pytest.approx(simulated.std(ddof=1), rel=0.2)
    exact = exact_outage(0.7, 5, 10, 25)
    assert simulated.mean() == pytest.approx(exact, abs=5 * simulated.std() / 300**0.5)


def test_the_error_covers_prompts_that_differ():
    """Acceptance of 0.5 and 0.9 in turns of 200 rounds: side by side windows would say a third."""
    outage = Outage(tokens=30, deadline_s=10 * ROUND_S, max_probability=0.1)

    def trace(seed):
        rng = np.random.default_rng(seed)
        parts = [committed(rng, rng.choice([0.5, 0.9]), 5, 200) for _ in range(100)]
        tokens = np.concatenate(parts)[None]
        return trace_of(np.cumsum(np.full(tokens.shape, ROUND_S), axis=1), tokens)

    found = [inference_outage(trace(seed), outage) for seed in range(150)]
    simulated = np.array([row.simulated[0] for row in found])
    errors = np.array([row.stderr[0] for row in found])
    apart = np.sqrt(simulated.mean() * (1 - simulated.mean()) / found[0].num_windows[0])
    assert simulated.std() > 1.5 * apart
    assert errors.mean() == pytest.approx(simulated.std(ddof=1), rel=0.25)


def test_what_was_never_seen_is_not_called_impossible():
    outage = Outage(tokens=11, deadline_s=10 * ROUND_S, max_probability=0.1)
    found = inference_outage(paper_rounds(0, (0.95,), 8, 2000), outage)
    assert found.simulated[0] == 0
    assert found.num_windows[0] == 199
    assert found.stderr[0] == 1 / 199


@pytest.mark.parametrize("num_rounds", [0, 1, 2, 5, 50])
def test_a_short_trace_gives_what_it_can(num_rounds):
    tokens = np.full((2, num_rounds), 3)
    at_s = np.tile(ROUND_S * np.arange(1, num_rounds + 1), (2, 1))
    if num_rounds == 0:
        windows = Windows(at_s[0], tokens[0], 1.0)
        assert np.isnan(windows.simulated(5)[0]) and np.isnan(windows.gaussian(5))
        return
    outage = Outage(tokens=4, deadline_s=4 * ROUND_S, max_probability=0.1)
    found = inference_outage(trace_of(at_s, tokens), outage)
    assert np.isnan(found.simulated).all() == (num_rounds < 5)
    assert np.isnan(found.stderr).all() == (num_rounds < 50)
    assert np.isnan(found.gaussian).all() == (num_rounds < 2)


def test_gaussian_of_constant_rounds_is_the_planned_one():
    """The moments of 50,000 rounds are within 1 % of the closed form's."""
    acceptance, length = np.array([0.4, 0.7, 0.85]), 5
    outage = Outage(tokens=40, deadline_s=16 * ROUND_S, max_probability=0.1)
    trace = paper_rounds(1, acceptance, length, 50_000)
    planned = planned_outage(outage, acceptance, np.full(3, length), ROUND_S)
    assert inference_outage(trace, outage).gaussian == pytest.approx(planned, abs=0.01)
    assert 0.01 < float(planned[1]) < 0.99


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6])
def test_gaussian_of_rounds_that_vary_is_close_to_what_is_counted(spread):
    rng = np.random.default_rng(3)
    num_rounds = 100_000
    tokens = committed(rng, 0.7, 5, num_rounds)[None]
    between_s = rng.gamma(spread**-2, ROUND_S * spread**2, tokens.shape)
    (windows,) = device_windows(trace_of(np.cumsum(between_s, axis=1), tokens), 20 * ROUND_S)
    asked = np.arange(25, 70)
    share, _ = windows.simulated(asked)
    assert np.abs(windows.gaussian(asked) - share).max() < 0.03
    as_if_constant = Windows(np.cumsum(np.full(num_rounds, ROUND_S)), tokens[0], 20 * ROUND_S)
    if spread > 0.2:  # the lengths of the rounds matter, and are seen
        assert np.abs(as_if_constant.gaussian(asked) - share).max() > 0.05


def test_every_device_has_its_own():
    trace = paper_rounds(2, (0.2, 0.9), 5, 4000)
    outage = Outage(tokens=25, deadline_s=10 * ROUND_S, max_probability=0.1)
    found = inference_outage(trace, outage)
    assert found.simulated[0] > 0.9 and found.simulated[1] < 0.1
    assert found.gaussian[0] > 0.9 and found.gaussian[1] < 0.1


@pytest.mark.parametrize(("name", "magic"), [("outage.png", b"\x89PNG"), ("outage.svg", b"<?xml")])
def test_plot(tmp_path, name, magic):
    outage = Outage(tokens=25, deadline_s=10 * ROUND_S, max_probability=0.1)
    for num_rounds in (2, 1000):  # of too short a trace there is nothing to draw but the promise
        trace = paper_rounds(0, (0.2, 0.5, 0.7, 0.9), 5, num_rounds)
        draw_outage(trace, outage, "a cell", str(tmp_path / name))
        picture = (tmp_path / name).read_bytes()
        assert picture.startswith(magic)
        is_labelled = b"device-0" in picture or name.endswith("png")
        assert is_labelled == (num_rounds > 2 or name.endswith("png"))
