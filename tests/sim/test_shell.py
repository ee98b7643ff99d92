"""The running server on a cell: its times are the model's, its verdicts the acceptance model's."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from multispin.cell import Cell, parse_cell
from multispin.control import evaluate, expected_tokens, solve
from multispin.control.problem import Floats
from multispin.errors import BadInput
from multispin.lm.record import NO_TOKEN, write_record
from multispin.sim.agreement import Agreements
from multispin.sim.shell import simulate_core
from multispin.sim.streams import random_streams
from multispin.sim.trace import Trace
from multispin.types import Mode
from tests.recording import ids, small_record

MODES = get_args(Mode)
CHANNEL = {"spectral_efficiency": None}  # there is a table that says it


def cell(*devices: str, server: str = "", longest: int = 12, trip_s: float = 0.02) -> Cell:
    tables = "\n".join(f"[[device]]\n{device}" for device in devices)
    return parse_cell(
        f"""
        [cell]
        bandwidth_hz = 1e5
        [server]
        verify_fixed_s = 0.1
        verify_per_device_s = 0.01
        verify_per_token_s = 0.001
        round_trip_s = {trip_s}
        max_draft_length = {longest}
        {server}
        {tables}
        """
    )


def device(name: str, acceptance: float = 0.8, more: str = "", **fields: object) -> str:
    known: dict[str, object] = {
        "draft_s_per_token": 0.01,
        "bits_per_token": 25,
        "bits_per_draft": 700,
        "answer_tokens": 60,
        "spectral_efficiency": 4.0,
    }
    values = {key: value for key, value in (known | fields).items() if value is not None}
    lines = [f"{key} = {value}" for key, value in values.items()]
    return "\n".join([f'name = "{name}"', f"acceptance = {acceptance}", *lines, more])


THREE = cell(device("a", 0.7), device("b", 0.9, draft_s_per_token=0.003), device("c", 0.4))


def goodput(trace: Trace, since_s: float = 0.0) -> float:
    tokens = trace.num_committed[trace.at_s > since_s].sum()
    return float(tokens / (trace.simulated_s - since_s))


def verdicts_of(trace: Trace, index: int) -> tuple[Floats, Floats, Floats]:
    mine = trace.device == index
    return trace.num_draft[mine], trace.num_accepted[mine], trace.num_committed[mine]


# --- what is accepted ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "model",
    [
        "",
        '[device.acceptance_model]\nkind = "beta"\nstd = 0.2',
        '[device.acceptance_model]\nkind = "markov"\ncorrelation = 0.5',
    ],
)
def test_every_verdict_is_what_the_acceptance_model_drew(mode: Mode, model: str) -> None:
    """The bits of mode rounds: both simulations have the same texts before them."""
    answer = 60
    here = cell(device("a", 0.7, model), device("b", 0.9, model), device("c", 0.4, model))
    trace = simulate_core(here, mode, "heterogeneous", 200, 7)
    agreements = Agreements(
        here.acceptance_models,
        here.problem.acceptance,
        here.answer_tokens,
        12,
        random_streams(7).agreement,
    )
    for index in range(3):
        drafts, accepted, committed = verdicts_of(trace, index)
        position = answer
        for num_draft, num_accepted, num_committed in zip(drafts, accepted, committed, strict=True):
            if position == answer:
                bits, position = agreements.agreement_path(index, answer + 12), 0
            judged = bits[position : position + num_draft]
            assert num_accepted == (len(judged) if judged.all() else judged.argmin())
            assert num_committed == num_accepted + 1
            position += num_committed
        assert committed.sum() > 2 * answer
    assert trace.num_draft.sum() > 100


@pytest.mark.parametrize("mode", MODES)
def test_a_recorded_pair_is_accepted_as_it_was_recorded(mode: Mode, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """One text, so that places on its path are known; a draft goes on as its row does."""
    record = small_record(("The phone drafts and the server ",))
    file = tmp_path / "pair.record"
    write_record(file, record)
    text = record.texts[0]
    path, drafts = ids(text.path), ids(text.drafts).reshape(-1, record.depth)
    model = f'[device.acceptance_model]\nkind = "replay"\nrecord = "{file}"'
    trace = simulate_core(
        cell(device("a", 0.7, model, answer_tokens=len(path))), mode, "fixed", 200, 7
    )
    position = 0
    for num_draft, num_accepted, num_committed in zip(*verdicts_of(trace, 0), strict=True):
        row = drafts[position][:num_draft]
        assert (row != NO_TOKEN).all()
        same = row == path[position : position + len(row)]
        assert num_accepted == (len(same) if same.all() else same.argmin())
        position = (position + num_committed) % len(path)
    assert trace.num_accepted.sum() > 10


# --- what it takes ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fixed", "bandwidth-only"])
def test_rounds_take_as_long_as_the_model_says(policy: str) -> None:
    """All is accepted, so that every round is the same. Noise grows with one device's bandwidth."""
    noisy = "[device.channel]\nreceived_power_dbm = -120"
    here = cell(
        device("a", 1.0, answer_tokens=100_000),
        device("b", 1.0, draft_s_per_token=0.004, answer_tokens=100_000),
        device("c", 1.0, noisy, bits_per_token=90, answer_tokens=100_000, **CHANNEL),
    )
    trace = simulate_core(here, "rounds", policy, 300, 1)
    late = trace.round >= 290
    for index in range(290, 300):
        chosen = np.flatnonzero(trace.round == index)
        order = chosen[np.argsort(trace.device[chosen])]
        plan = evaluate(here.problem, trace.num_draft[order], trace.bandwidth_hz[order])
        took_s = trace.pass_start_s[index] - trace.pass_start_s[index - 1]
        assert took_s == pytest.approx(plan.round_s, rel=1e-4)  # bandwidths are 32-bit floats
        assert trace.upload_s[order] == pytest.approx(plan.upload_s, rel=1e-4)
        assert trace.draft_s[order] == pytest.approx(plan.draft_s)
        assert trace.bandwidth_hz[order].sum() == pytest.approx(1e5, rel=1e-4)
    assert (trace.num_draft[late] == 8).all()
    assert (trace.num_committed[late] == 9).all()


@pytest.mark.parametrize("mode", MODES)
def test_passes_cost_their_rows_and_do_not_overlap(mode: Mode) -> None:
    trace = simulate_core(THREE, mode, "heterogeneous", 150, 3)
    num_judged = np.bincount(trace.round, minlength=150)
    rows = np.bincount(trace.round, trace.num_draft + 1, minlength=150)
    assert (trace.pass_rows == rows).all()
    assert trace.pass_s == pytest.approx(0.1 + 0.01 * num_judged + 0.001 * rows)
    assert (np.diff(trace.pass_start_s) >= trace.pass_s[:-1] - 1e-9).all()
    ends_s = (trace.pass_start_s + trace.pass_s)[trace.round]
    assert trace.at_s == pytest.approx(ends_s + 0.01)
    assert trace.simulated_s == trace.at_s.max()
    assert (np.diff(trace.at_s) >= 0).all()
    assert trace.num_passes == 150


def test_alone_in_stop_and_wait_a_device_has_the_cycle_of_its_model() -> None:
    here = cell(device("a", 1.0, answer_tokens=100_000))
    trace = simulate_core(here, "stop-and-wait", "fixed", 200, 1)
    plan = evaluate(here.problem, np.array([8]), np.array([1e5]))
    assert np.diff(trace.at_s)[-50:] == pytest.approx(plan.round_s, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_it_ends_with_the_last_verdict_of_the_last_pass(mode: Mode) -> None:
    """With a short window full long before, nothing else is left to happen."""
    here = cell(device("a", 0.9, draft_s_per_token=1e-4, answer_tokens=5000), longest=4)
    for num_passes in range(1, 12):
        trace = simulate_core(here, mode, "fixed", num_passes, 1)
        assert trace.num_passes == len(trace.device) == num_passes


def test_a_window_hides_the_round_trip() -> None:
    far = cell(
        *(device(name, 0.9, draft_s_per_token=0.005, answer_tokens=10_000) for name in "ab"),
        longest=32,
        trip_s=0.15,
    )
    by_mode = {
        mode: goodput(simulate_core(far, mode, "heterogeneous", 150, 1), 5) for mode in MODES
    }
    assert by_mode["window"] > 1.1 * by_mode["stop-and-wait"]
    assert by_mode["window"] > 1.1 * by_mode["rounds"]


def test_goodput_is_the_plans_under_a_known_grant() -> None:
    """Of 6 joint comparisons none is beyond 4.5 standard errors: by chance once in 24,000.

    Drafting is quick, so that no device stops early; answers do not end.
    """
    rng = np.random.default_rng(3)
    for _ in range(6):
        devices = [
            device(
                f"d{i}",
                float(rng.uniform(0.6, 0.95)),
                draft_s_per_token=float(rng.uniform(1e-6, 1e-5)),
                answer_tokens=20_000,
                bits_per_token=float(rng.uniform(20, 2000)),
                spectral_efficiency=float(rng.uniform(1, 8)),
            )
            for i in range(3)
        ]
        here = cell(*devices)
        trace = simulate_core(here, "rounds", "fixed", 250, int(rng.integers(1000)))
        settled = trace.round >= 10
        assert (trace.num_draft[settled] == 8).all()
        tokens = np.bincount(trace.round[settled] - 10, trace.num_committed[settled])
        expected = expected_tokens(here.problem.acceptance, np.full(3, 8)).sum()
        error = tokens.std(ddof=1) / np.sqrt(len(tokens))
        assert abs(tokens.mean() - expected) < 4.5 * error
        plan = evaluate(here.problem, np.full(3, 8), np.full(3, 1e5 / 3))
        round_s = np.diff(trace.pass_start_s[10:]).mean()
        assert round_s == pytest.approx(plan.round_s, rel=1e-3)


# --- what is decided ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [(1500, 1500, 1500), (25, 25, 3000)])
def test_the_controller_comes_to_plan_with_each_devices_payload(bits: tuple[int, ...]) -> None:
    """Believing in the codec's own, it would take uploads for round trips, and not draft at all, or
    as far as it can."""
    here = cell(
        *(
            device(f"d{k}", draft_s_per_token=0.002, bits_per_token=each, answer_tokens=100_000)
            for k, each in enumerate(bits)
        )
    )
    plan = solve(here.problem)
    assert plan.lengths.max() < 12
    trace = simulate_core(here, "rounds", "heterogeneous", 300, 1)
    late = trace.at_s > trace.simulated_s / 2
    for index, length in enumerate(plan.lengths):
        assert trace.num_draft[late & (trace.device == index)].mean() == pytest.approx(
            length, abs=2
        )
    assert goodput(trace, trace.simulated_s / 2) == pytest.approx(
        plan.goodput_tokens_per_s, rel=0.05
    )


def test_uploads_go_through_the_fading_channel() -> None:
    fading = '[device.channel]\nsnr_db = 12\nfading = "rayleigh"\ncoherence_s = 0.05'
    here = cell(device("a", 0.9, fading, bits_per_token=900, **CHANNEL))
    trace = simulate_core(here, "stop-and-wait", "fixed", 300, 1)
    full = (trace.num_draft == 8) & (trace.bandwidth_hz == trace.bandwidth_hz.max())
    upload_s = trace.upload_s[full]
    assert len(upload_s) > 50
    assert upload_s.std() > 0.1 * upload_s.mean()


def test_the_seed_is_all_the_chance_there_is() -> None:
    one, same, other = (simulate_core(THREE, "window", "fixed", 80, seed) for seed in (1, 1, 2))
    assert (one.num_accepted == same.num_accepted).all()
    assert (one.at_s == same.at_s).all()
    assert one.num_tokens != other.num_tokens or one.simulated_s != other.simulated_s


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    simulate_core(THREE, "window", "fixed", 400, 1, lambda *both: told.append(both))
    assert told[-1] == (400, 400)
    assert told == [(done, 400) for done in range(2, 401, 2)]


# --- bad input ----------------------------------------------------------------------------------


def test_a_device_that_never_gets_a_rate_is_named() -> None:
    deaf = "[device.channel]\nsnr_db = 3\nmin_rate_bits_per_s = 1e9"
    here = cell(device("near"), device("deaf", 0.8, deaf, **CHANNEL))
    with pytest.raises(BadInput, match="deaf"):
        simulate_core(here, "window", "fixed", 100, 1)


@pytest.mark.parametrize(
    ("server", "field"),
    [
        ("[objective]\nmin_goodput_tokens_per_s = 1.0", "min_goodput_tokens_per_s = 1.0"),
        ('[objective]\nkind = "proportional"', "objective.kind = proportional"),
        ("min_draft_length = 2", "min_draft_length = 2"),
    ],
)
def test_what_only_a_planner_can_do_is_refused(server: str, field: str) -> None:
    with pytest.raises(BadInput, match=f"{field}.*mode rounds"):
        simulate_core(cell(device("a"), server=server), "window", "fixed", 10, 1)


@pytest.mark.parametrize(
    ("changes", "policy", "field"),
    [({"csi": "instantaneous"}, "fixed", "csi"), ({}, "outage-constrained", "--policy")],
)
def test_nor_does_the_server_know_the_channel(
    changes: dict[str, str], policy: str, field: str
) -> None:
    with pytest.raises(BadInput, match=f"{field}.*mode rounds"):
        simulate_core(replace(THREE, **changes), "window", policy, 10, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_an_unknown_policy_is_refused(mode: Mode) -> None:
    with pytest.raises(BadInput, match=r"heterogenous.*did you mean heterogeneous"):
        simulate_core(THREE, mode, "heterogenous", 10, 1)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(BadInput, match="--rounds = 0"):
        simulate_core(THREE, "window", "fixed", 0, 1)
