"""What every simulated trace keeps to, whatever the cell and the policy."""

from __future__ import annotations

import numpy as np
import pytest

from multispin.control import POLICIES
from multispin.sim.rounds import simulate_rounds
from multispin.sim.trace import VERDICT_COLUMNS
from tests.sim.cells import cell

FADING = 'snr_db = 12\nfading = "rayleigh"\ncoherence_s = 0.03\nmin_rate_bits_per_s = 1e4'
CELLS = {
    "steady": {},
    "fading": {"channel": FADING},
    "instantaneous": {"channel": FADING, "cell": 'csi = "instantaneous"'},
}
OUTAGE = "outage_tokens = 5\noutage_deadline_s = 20\nmax_outage = 0.2"


@pytest.fixture(scope="module", params=CELLS)
def phones(request):
    small = "max_draft_length = 6" if request.param == "instantaneous" else ""
    return cell(**CELLS[request.param], objective=OUTAGE, server=small)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "exhaustive"])
def test_conservation(phones, policy: str) -> None:
    trace = simulate_rounds(phones, policy, 60, 1)
    assert trace.num_passes == 60 and trace.num_devices == 4 and len(trace.device) == 240
    assert (trace.num_accepted >= 0).all() and (trace.num_accepted <= trace.num_draft).all()
    assert (trace.num_committed == trace.num_accepted + 1).all()
    assert trace.num_draft.max() <= phones.problem.max_draft_length
    rounds = trace.num_draft.reshape(60, 4)
    assert (trace.pass_rows == rounds.sum(axis=1) + 4).all()
    budget = phones.problem.bandwidth_hz * (1 + 1e-6)
    assert (trace.bandwidth_hz.reshape(60, 4).sum(axis=1) <= budget).all()
    assert (trace.bandwidth_hz[trace.num_draft > 0] > 0).all()
    assert trace.num_tokens == trace.num_committed.sum()


@pytest.mark.parametrize("policy", ["heterogeneous", "server-only"])
def test_a_round_is_the_slowest_draft_the_way_the_pass_and_the_way_back(phones, policy) -> None:
    trace = simulate_rounds(phones, policy, 60, 1)
    problem = phones.problem
    drafted = trace.num_draft.reshape(60, 4)
    alone = drafted * problem.draft_s_per_token
    assert trace.draft_s.reshape(60, 4) == pytest.approx(alone, rel=1e-6)
    assert ((trace.upload_s > 0) == (trace.num_draft > 0)).all()
    slowest = (trace.draft_s + trace.upload_s).reshape(60, 4).max(axis=1)
    way_s = np.where(drafted.sum(axis=1) > 0, problem.round_trip_s / 2, 0.0)
    ends_s = trace.at_s.reshape(60, 4)
    assert (ends_s == ends_s[:, :1]).all()
    begins_s = np.concatenate([[0.0], ends_s[:-1, 0]])
    assert trace.pass_start_s == pytest.approx(begins_s + slowest + way_s, rel=1e-6)
    assert trace.pass_s == pytest.approx(
        problem.verify_fixed_s
        + 4 * problem.verify_per_device_s
        + trace.pass_rows * problem.verify_per_token_s
    )
    assert ends_s[:, 0] == pytest.approx(trace.pass_start_s + trace.pass_s + way_s)
    assert trace.simulated_s == ends_s[-1, 0]


def test_one_seed_one_trace(phones) -> None:
    one, same, other = (simulate_rounds(phones, "heterogeneous", 40, seed) for seed in (5, 5, 6))
    for name in VERDICT_COLUMNS:
        assert (getattr(one, name) == getattr(same, name)).all()
    assert (one.num_accepted != other.num_accepted).any()
