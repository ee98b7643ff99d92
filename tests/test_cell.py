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
        ("spectral_efficiency = 5.1", "", "give either spectral_efficiency"),
        ("bits_per_token = 18", "bits_per_token = 18\nspectral_efficiency = 1.0", "not both"),
        ("received_power_dbm", "recieved_power_dbm", "did you mean received_power_dbm?"),
        ("received_power_dbm = -84.0", "received_power_dbm = 1e9", "between -300 and 100"),
        (
            "min_draft_length = 1",
            "min_draft_length = 13",
            "max_draft_length = 12: must be between 13",
        ),
        ("verify_fixed_s = 0.0227", "verify_fixed_s = -1", "server.verify_fixed_s = -1"),
        ('kind = "proportional"', 'kind = "max-min"', 'must be "sum" or "proportional"'),
        ("[device.channel]", "[device.energy]", "energy = {...}: this table is not supported yet"),
        ("[device.channel]", "[device.acceptance_model]", "is not supported yet"),
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
    goodput = [row["goodput_tokens_per_s"] for row in printed["comparison"]]
    assert len(goodput) == 7 and goodput == sorted(goodput, reverse=True)


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
