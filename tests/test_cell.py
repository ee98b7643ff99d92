"""CELL.toml: every documented key is read, every mistake is named; ``multispin plan`` prints it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from multispin.cell import load_cell, parse_cell
from multispin.cli.plan import plan
from multispin.control import POLICIES, solve
from multispin.control.outage import Outage
from multispin.errors import BadInput

CELL = """
[cell]
bandwidth_hz = 10e6

[server]
verify_fixed_s = 0.0227
verify_per_device_s = 0.0127
verify_per_token_s = 0.001
round_trip_s = 0.01
min_draft_length = 1
max_draft_length = 12

[objective]
kind = "proportional"
min_goodput_tokens_per_s = 0.5

[[device]]
name = "phone"
count = 2
draft_s_per_token = 0.020
acceptance = 0.74
spectral_efficiency = 5.1
bits_per_token = 31744
bits_per_draft = 500

[[device]]
name = "kiosk"
draft_s_per_token = 0.005
acceptance = 0.9
bits_per_token = 18
[device.channel]
received_power_dbm = -84.0
noise_density_dbm_per_hz = -174.0
"""

app = typer.Typer()
app.command()(plan)
runner = CliRunner()


def test_every_key_is_read():
    cell = parse_cell(CELL)
    problem = cell.problem
    assert cell.names == ("phone-1", "phone-2", "kiosk")
    assert problem.draft_s_per_token.tolist() == [0.02, 0.02, 0.005]
    assert problem.acceptance.tolist() == [0.74, 0.74, 0.9]
    assert problem.bits_per_token.tolist() == [31744, 31744, 18]
    assert problem.bits_per_draft.tolist() == [500, 500, 0]
    assert (problem.bandwidth_hz, problem.verify_fixed_s) == (10e6, 0.0227)
    assert (problem.verify_per_device_s, problem.verify_per_token_s) == (0.0127, 0.001)
    assert (problem.round_trip_s, problem.min_draft_length) == (0.01, 1)
    assert problem.max_draft_length == 12
    assert problem.objective.kind == "proportional"
    assert problem.objective.min_goodput_tokens_per_s == 0.5
    rate = problem.uplink.rate(np.full(3, 1e6))
    assert rate == pytest.approx([5.1e6, 5.1e6, 1e6 * np.log2(1 + 1e9 / 1e6)])


CURVE = """
[server.curve]
rows = [1, 4]
seconds = [0.07, 0.12]
"""


def test_a_measured_curve_is_read():
    curve = parse_cell(CELL + CURVE).curve
    assert curve is not None and (curve.rows, curve.seconds) == ([1, 4], [0.07, 0.12])
    assert parse_cell(CELL).curve is None


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[1, 4]", "[1]", "server.curve.rows"),
        ("[1, 4]", "[4, 1]", "must rise"),
        ("[1, 4]", "[0, 4]", "must rise"),
        ("[1, 4]", '"all"', "server.curve.rows"),
        ("0.07", "0.0", "server.curve.seconds"),
        ("0.07", "inf", "server.curve.seconds"),
        ("0.07", "0.13", "must not fall at the end"),
    ],
)
def test_a_curve_that_cannot_be_is_named(old, new, named):
    with pytest.raises(BadInput, match=named.replace(".", r"\.")):
        parse_cell(CELL + CURVE.replace(old, new))


def test_defaults_are_the_contracts():
    text = """
    [cell]
    bandwidth_hz = 1e6
    [server]
    verify_fixed_s = 0.1
    [[device]]
    name = "a"
    draft_s_per_token = 0
    acceptance = 1
    spectral_efficiency = 1
    bits_per_token = 0
    """
    problem = parse_cell(text).problem
    assert problem.verify_per_device_s == problem.verify_per_token_s == problem.round_trip_s == 0
    assert (problem.min_draft_length, problem.max_draft_length) == (0, 25)
    assert problem.bits_per_draft.tolist() == [0]
    assert (problem.objective.kind, problem.objective.min_goodput_tokens_per_s) == ("sum", 0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bandwidth_hz = 10e6", "bandwidth_hz = 0", "cell.bandwidth_hz = 0"),
        ("bandwidth_hz = 10e6", "bandwidth = 10e6", "did you mean bandwidth_hz?"),
        ("bandwidth_hz = 10e6", "bandwidth_hz = nan", "cell.bandwidth_hz = nan: must be above 0"),
        ("bandwidth_hz = 10e6", "bandwidth_hz = inf", "cell.bandwidth_hz = inf: must be above 0"),
        ("bandwidth_hz = 10e6", "", "cell.bandwidth_hz = (missing)"),
        ("[cell]", "[sell]", "did you mean cell?"),
        ("[[device]]", "[[devices]]", "did you mean device?"),
        ("acceptance = 0.74", "acceptance = 1.2", "device[0] 'phone'.acceptance = 1.2"),
        ("acceptance = 0.74", "acceptance = -0.1", "must be between 0 and 1"),
        ("acceptance = 0.9", 'acceptance = "high"', "device[1] 'kiosk'.acceptance = 'high'"),
        ("acceptance = 0.9", "acceptance = true", "must not be true or false"),
        ("draft_s_per_token = 0.020", "draft_s_per_token = -1", "draft_s_per_token = -1"),
        ("draft_s_per_token = 0.020", "", "'phone'.draft_s_per_token = (missing)"),
        ("count = 2", "count = 0", "device[0] 'phone'.count = 0"),
        ("count = 2", "count = 1.5", "device[0] 'phone'.count = 1.5"),
        ("count = 2", "counts = 2", "did you mean count?"),
        ("spectral_efficiency = 5.1", "spectral_efficiency = 0", "must be above 0"),
        ("spectral_efficiency = 5.1", "", "give exactly one of spectral_efficiency, channel"),
        ("bits_per_token = 18", "bits_per_token = 18\nspectral_efficiency = 1.0", "exactly one"),
        ("received_power_dbm", "recieved_power_dbm", "did you mean received_power_dbm?"),
        ("received_power_dbm = -84.0", "received_power_dbm = 1e9", "between -300 and 100"),
        (
            "min_draft_length = 1",
            "min_draft_length = 13",
            "max_draft_length = 12: must be at least min_draft_length, 13",
        ),
        ("verify_fixed_s = 0.0227", "verify_fixed_s = -1", "server.verify_fixed_s = -1"),
        ('kind = "proportional"', 'kind = "max-min"', 'must be "sum" or "proportional"'),
        ("[device.channel]", "[device.chanel]", "did you mean channel?"),
        ("count = 2", "channel = 2", "'phone'.channel = 2: must be a table"),
        ("count = 2", "energy = 2", "device[0] 'phone'.energy = 2: must be a table"),
        ("[objective]", "[server.energy]\nbusy_w = -1\n[objective]", "server.energy.busy_w = -1"),
        ('name = "kiosk"', 'name = "phone-1"', "used twice"),
        ("[server]", "[server", "(not TOML)"),
    ],
)
def test_mistakes_are_named(old, new, said):
    assert old in CELL
    with pytest.raises(BadInput) as caught:
        parse_cell(CELL.replace(old, new, 1), source="my.toml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("my.toml")


SIMULATED = """
[cell]
bandwidth_hz = 4e6
csi = "instantaneous"

[server]
verify_fixed_s = 0.02
[server.energy]
busy_w = 400
idle_w = 50

[objective]
outage_tokens = 20
outage_deadline_s = 2.5
max_outage = 0.1

[[device]]
name = "flat"
draft_s_per_token = 0.02
acceptance = 0.7
payload = "top-1024"
vocabulary_size = 32000
answer_tokens = 64
[device.channel]
snr_db = 20
fading = "rayleigh"
coherence_s = 0.5
[device.energy]
draft_w = 5
transmit_w = 1
idle_w = 0.1
[device.acceptance_model]
kind = "beta"
std = 0.3

[[device]]
name = "street"
count = 2
draft_s_per_token = 0.02
acceptance = 0.7
payload = "coupled"
vocabulary_size = 32000
[device.channel]
model = "umi"
distance_m = 50
carrier_hz = 3.5e9
transmit_power_dbm = 23
antenna_gain_db = 8
noise_figure_db = 5
noise_density_dbm_per_hz = -174
fading = "rician"
rician_k_db = 10
speed_m_per_s = 1.5
min_rate_bits_per_s = 1000
[device.acceptance_model]
kind = "replay"
record = "records/pair.bin"

[[device]]
name = "plain"
draft_s_per_token = 0.02
acceptance = 0.7
bits_per_token = 18
spectral_efficiency = 5.0
[device.acceptance_model]
kind = "markov"
correlation = -0.2
"""
HALL = """model = "indoor"
distance_m = 20
carrier_hz = 3.7e9
transmit_power_dbm = 23
"""


def with_channel(text: str) -> str:
    """SIMULATED with another [device.channel] for the first device."""
    begin, end = SIMULATED.index("snr_db"), SIMULATED.index("[device.energy]")
    return SIMULATED[:begin] + text + "\n" + SIMULATED[end:]


def test_every_key_of_the_simulator_is_read():
    cell = parse_cell(SIMULATED, source="folder/cell.toml")
    assert cell.names == ("flat", "street-1", "street-2", "plain")
    assert cell.csi == "instantaneous"
    assert cell.answer_tokens.tolist() == [64, 128, 128, 128]
    assert cell.problem.bits_per_token.tolist() == [31744, 18, 18, 18]
    assert cell.problem.bits_per_draft.tolist() == [0, 760, 760, 0]
    assert cell.problem.objective.outage == Outage(20, 2.5, 0.1)
    energy = cell.energy
    assert (energy.server_busy_w, energy.server_idle_w) == (400, 50)
    assert energy.draft_w.tolist() == [5, 0, 0, 0]
    assert energy.transmit_w.tolist() == [1, 0, 0, 0]
    assert energy.idle_w.tolist() == [0.1, 0, 0, 0]
    models = cell.acceptance_models
    assert [model.kind for model in models] == ["beta", "replay", "replay", "markov"]
    assert (models[0].std, models[3].correlation) == (0.3, -0.2)
    assert models[1].record == str(Path("folder/records/pair.bin"))
    radio = cell.radio
    assert radio.is_noisy.tolist() == [False, True, True, False]
    assert radio.efficiency[[0, 3]] == pytest.approx([np.log2(101), 5.0])
    assert radio.rician_k.tolist() == [0, 10, 10, np.inf]
    assert radio.coherence_s == pytest.approx([0.5, 0.423 / 17.5, 0.423 / 17.5, np.inf])
    assert radio.min_rate_bits_per_s.tolist() == [0, 1000, 1000, 0]
    assert not radio.is_constant


def test_the_link_budget_by_hand():
    """umi at 50 m and 3.5 GHz: 79.090 dB in line of sight (18/50 + 0.64 exp(-50/36) = 0.5196),
    94.181 without; 23 dBm + 8 dB - loss - (-174 dBm/Hz + 5 dB)."""
    link = parse_cell(SIMULATED).link
    assert link.power_to_noise_db[:, 1] == pytest.approx([120.910, 105.819], abs=1e-3)
    assert link.shadowing_db[:, 1].tolist() == [4.0, 7.82]
    assert link.los_probability[1] == pytest.approx(0.5196, abs=1e-4)
    mean = 105.819 + 0.5196 * (120.910 - 105.819)
    assert link.mean_db()[1] == pytest.approx(mean, abs=0.01)
    assert link.shadowing_db[:, [0, 3]].tolist() == [[0, 0], [0, 0]]


def test_the_problem_has_the_ergodic_rates():
    cell = parse_cell(SIMULATED)
    share = np.full(4, 1e6)
    rate = cell.problem.uplink.rate(share)
    assert rate == pytest.approx(cell.radio.mean_rate(share))
    assert rate[3] == 5e6 and rate[0] < 1e6 * np.log2(101)


def test_a_cell_without_chance_is_as_before():
    """Everything of issue 5 left out: what plan had is what the simulator gets."""
    cell = parse_cell(CELL)
    assert cell.csi == "statistical" and cell.radio.is_constant
    assert cell.drawn(np.random.default_rng(0)) is cell
    assert [model.kind for model in cell.acceptance_models] == ["iid"] * 3
    assert cell.answer_tokens.tolist() == [128] * 3
    assert cell.problem.objective.outage is None
    arrays = (cell.energy.draft_w, cell.energy.transmit_w, cell.energy.idle_w)
    assert not np.any(arrays) and cell.energy.server_busy_w == cell.energy.server_idle_w == 0


def test_drawn_changes_what_is_left_to_chance_and_nothing_else():
    cell = parse_cell(SIMULATED)
    first, again, other = (cell.drawn(np.random.default_rng(seed)) for seed in (1, 1, 2))
    w = first.radio.power_to_noise_hz
    assert (w == again.radio.power_to_noise_hz).all()
    assert (w[[1, 2]] != other.radio.power_to_noise_hz[[1, 2]]).all() and w[1] != w[2]
    assert (w[[0, 3]] == cell.radio.power_to_noise_hz[[0, 3]]).all()
    share = np.full(4, 1e6)
    assert first.problem.uplink.rate(share) == pytest.approx(first.radio.mean_rate(share))
    assert first.names == cell.names and first.problem.acceptance is cell.problem.acceptance


def test_a_line_of_sight_can_be_given_and_shadowing_left_out():
    fixed = SIMULATED.replace("distance_m = 50", 'distance_m = 50\nlos = "none"\nshadowing_db = 0')
    cell = parse_cell(fixed)
    assert cell.link.mean_db()[1] == pytest.approx(105.819, abs=1e-3)
    assert cell.drawn(np.random.default_rng(0)) is cell
    seen = parse_cell(fixed.replace('"none"', '"line-of-sight"'))
    assert seen.link.mean_db()[1] == pytest.approx(120.910, abs=1e-3)


def test_a_device_that_is_always_in_outage_is_left_to_the_server():
    cell = parse_cell(
        with_channel("snr_db = 20\nmin_rate_bits_per_s = 1e9")
        .replace("outage_tokens = 20", "")
        .replace("outage_deadline_s = 2.5", "")
        .replace("max_outage = 0.1", "")
    )
    for policy in ("heterogeneous", "length-only"):
        assert solve(cell.problem, policy).lengths[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('csi = "inst', 'csi = "immediat', 'must be "statistical" or "instantaneous"'),
        ("outage_tokens = 20", "", "objective.outage_tokens = (missing): is required with"),
        ("max_outage = 0.1", "max_outage = 1.5", "max_outage = 1.5: must be between 0 and 1"),
        ("max_outage = 0.1", "max_outage = 0", "objective.max_outage = 0"),
        ('payload = "top-1024"', 'payload = "top"', "device[0] 'flat'.payload = 'top': must be"),
        ('payload = "top-1024"', "", "give exactly one of bits_per_token, payload"),
        ("vocabulary_size = 32000", "", "vocabulary_size = (missing): is required with payload"),
        (
            "vocabulary_size = 32000",
            "vocabulary_size = 9",
            "'flat'.payload = 'top-1024': must keep",
        ),
        (
            "answer_tokens = 64",
            "bits_per_draft = 5",
            "bits_per_draft = 5: only goes with bits_per_t",
        ),
        ("answer_tokens = 64", "answer_tokens = 0", "'flat'.answer_tokens = 0"),
        ("snr_db = 20", "", "channel.snr_db = (missing): give exactly one of snr_db, received"),
        ("snr_db = 20", 'snr_db = 20\nmodel = "uma"', "give exactly one of"),
        ("snr_db = 20", "snr_db = 20\ndistance_m = 20", "distance_m = 20: only goes with model"),
        ("snr_db = 20", "snr_db = 20\nnoise_figure_db = 3", "only goes with received_power_dbm or"),
        ("snr_db = 20", "snr_db = 20\ncarrier_hz = 1e9", "only goes with model or speed_m_per_s"),
        ("coherence_s = 0.5", "", "give exactly one of speed_m_per_s, coherence_s"),
        (
            "coherence_s = 0.5",
            "speed_m_per_s = 1",
            "carrier_hz = (missing): is required with model",
        ),
        ("coherence_s = 0.5", "coherence_s = 0", "channel.coherence_s = 0: must be between"),
        ('fading = "rayleigh"', "", 'coherence_s = 0.5: only goes with fading = "rayleigh" or'),
        ('fading = "rayleigh"', 'fading = "rician"', 'is required with fading = "rician"'),
        ('fading = "rayleigh"', 'fading = "rice"', 'must be "none" or "rayleigh" or'),
        ("transmit_power_dbm = 23", "", "transmit_power_dbm = (missing): is required with model"),
        ('model = "umi"', 'model = "urban"', 'must be "uma" or "umi" or "indoor"'),
        (
            "distance_m = 50",
            "distance_m = 6000",
            "'street'.channel.distance_m = 6000.0: must be be",
        ),
        (
            "distance_m = 50",
            "distance_m = 50\nbase_station_height_m = 9",
            "height_m = 9.0: must be 10",
        ),
        ("distance_m = 50", "distance_m = 50\nlos = true", "must not be true or false"),
        ('kind = "beta"', "", 'std = 0.3: only goes with kind = "beta"'),
        ('kind = "beta"', 'kind = "gamma"', 'must be "iid" or "beta" or "markov" or "replay"'),
        ("std = 0.3", "", 'std = (missing): is required with kind = "beta"'),
        ("std = 0.3", "std = 0.46", "std = 0.46: must be below 0.4583 where acceptance is 0.7"),
        ('record = "records/pair.bin"', "", 'record = (missing): is required with kind = "replay"'),
        ("correlation = -0.2", "correlation = -0.5", "must be from -0.4286 to below 1"),
        ("correlation = -0.2", "correlation = 1", "must be from -0.4286 to below 1"),
        ("draft_w = 5", "draft_W = 5", "did you mean draft_w?"),
        ("draft_w = 5", "draft_w = -5", "'flat'.energy.draft_w = -5: must be 0 or more"),
    ],
)
def test_mistakes_in_what_the_simulator_reads_are_named(old, new, said):
    assert old in SIMULATED
    with pytest.raises(BadInput) as caught:
        parse_cell(SIMULATED.replace(old, new, 1), source="my.toml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("my.toml: ")


def test_keys_that_go_together_do():
    """The counterparts of the rules: what each of the channels may have is read."""
    for channel in (
        HALL,
        HALL + "device_height_m = 1.5\nbase_station_height_m = 8\nshadowing_db = 4",
        HALL + 'fading = "rayleigh"\nspeed_m_per_s = 2',
        "received_power_dbm = -80\nnoise_figure_db = 5\nmin_rate_bits_per_s = 5",
        'received_power_dbm = -80\nfading = "rician"\nrician_k_db = 0\ncoherence_s = 1',
        'snr_db = -3\nfading = "rayleigh"\nspeed_m_per_s = 2\ncarrier_hz = 8e8',
        'snr_db = -3\nfading = "none"',
    ):
        assert np.isfinite(parse_cell(with_channel(channel)).problem.alone_rate).all()


def test_no_device_and_no_time():
    head = CELL[: CELL.index("[[device]]")]
    with pytest.raises(BadInput, match="at least one"):
        parse_cell(head)
    with pytest.raises(BadInput, match="must take time"):
        parse_cell(
            CELL.replace("verify_fixed_s = 0.0227", "verify_fixed_s = 0")
            .replace("verify_per_device_s = 0.0127", "")
            .replace("verify_per_token_s = 0.001", "")
        )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load_cell(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        load_cell(tmp_path / "binary.toml")


@pytest.fixture
def cell_path(tmp_path) -> Path:
    path = tmp_path / "cell.toml"
    path.write_text(CELL)
    return path


def test_plan_json_is_the_contract(cell_path):
    result = runner.invoke(app, [str(cell_path), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert list(printed) == [
        "policy",
        "goodput_tokens_per_s",
        "round_s",
        "bandwidth_used_hz",
        "solve_s",
        "devices",
    ]
    assert printed["policy"] == "heterogeneous"
    assert [device["name"] for device in printed["devices"]] == ["phone-1", "phone-2", "kiosk"]
    assert set(printed["devices"][0]) == {
        "name",
        "draft_length",
        "bandwidth_hz",
        "expected_tokens",
        "draft_s",
        "upload_s",
    }
    tokens = sum(device["expected_tokens"] for device in printed["devices"])
    assert printed["goodput_tokens_per_s"] == pytest.approx(tokens / printed["round_s"])
    lengths = [device["draft_length"] for device in printed["devices"]]
    slowest = max(device["draft_s"] + device["upload_s"] for device in printed["devices"])
    verify = 0.0227 + 3 * 0.0127 + 0.001 * (sum(lengths) + 3)
    assert printed["round_s"] == pytest.approx(slowest + verify + 0.01)


def test_plan_for_people_and_comparison(cell_path):
    cell_path.write_text(CELL.replace("min_goodput_tokens_per_s = 0.5", ""))
    result = runner.invoke(app, [str(cell_path), "--compare"])
    assert result.exit_code == 0, result.output
    for word in ("kiosk", "heterogeneous", "length-only", "server-only", "exhaustive", "goodput"):
        assert word in result.stdout
    printed = json.loads(runner.invoke(app, [str(cell_path), "--compare", "--json"]).stdout)
    rows = printed["comparison"]
    assert {row["policy"] for row in rows} == set(POLICIES)
    goodput = [row["goodput_tokens_per_s"] for row in rows if "reason" not in row]
    assert len(goodput) >= 7 and goodput == sorted(goodput, reverse=True)


def test_plan_passes_bad_input_on(cell_path):
    result = runner.invoke(app, [str(cell_path), "--policy", "homogenous"])
    assert isinstance(result.exception, BadInput)
    assert "did you mean homogeneous" in str(result.exception)


def test_importing_the_command_stays_light():
    """``multispin --help`` must not pay for NumPy."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    code = "import sys, multispin.cli.plan; print('numpy' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
