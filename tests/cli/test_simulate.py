"""`multispin simulate` as a person runs it: the object of contract.md, table, log, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.sim.cells import text

FADING = 'snr_db = 12\nfading = "rayleigh"\ncoherence_s = 0.03'
OUTAGE = "outage_tokens = 10\noutage_deadline_s = 5\nmax_outage = 0.1"
ENERGY = "energy = {draft_w = 3, transmit_w = 1, idle_w = 0.2}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multispin", "simulate", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def cell_file(tmp_path: Path) -> Path:
    return write(tmp_path, channel=FADING, objective=OUTAGE, device=ENERGY)


def write(folder: Path, **parts: str) -> Path:
    file = folder / "cell.toml"
    file.write_text(text(**parts))
    return file


def simulate(*arguments: str) -> dict:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_json_is_the_contracts_object_and_more(cell_file: Path) -> None:
    result = simulate(str(cell_file), "--rounds", "300", "--seed", "4", "--policy", "fixed")
    assert [result[key] for key in ("policy", "rounds", "seed", "mode")] == [
        "fixed",
        300,
        4,
        "rounds",
    ]
    goodput = result["goodput_tokens_per_s"]
    assert goodput == pytest.approx(result["tokens"] / result["simulated_s"])
    assert 0 < result["goodput_stderr"] < 0.1 * goodput and result["goodput_batches"] == 30
    assert result["round_s_mean"] == pytest.approx(result["simulated_s"] / 300)
    assert result["wall_s"] > 0
    devices = result["devices"]
    assert [d["name"] for d in devices] == ["phone-1", "phone-2", "phone-3", "robot"]
    assert sum(d["goodput_tokens_per_s"] for d in devices) == pytest.approx(goodput)
    phone = devices[0]
    assert phone["mean_draft_length"] == 8 and 1 < phone["mean_acceptance_length"] < 9
    assert phone["joules_per_token"] > 0 and result["devices_joules_per_token"] > 0
    assert 0 <= phone["outage"]["probability"] <= 1 and 0 <= phone["outage"]["gaussian"] <= 1
    for times in (result, phone):
        for quantiles in (times["time_per_token_s"], times["answer_s"]):
            assert 0 < quantiles["p50"] <= quantiles["p95"] <= quantiles["p99"]


def test_what_a_cell_does_not_say_is_null(tmp_path: Path) -> None:
    result = simulate(str(write(tmp_path)), "--rounds", "1")
    assert result["goodput_stderr"] is None
    assert result["devices_joules_per_token"] is None and result["server_joules_per_token"] is None
    assert result["devices"][0]["outage"] is None
    assert result["devices"][0]["joules_per_token"] is None
    assert result["answer_s"] == {"p50": None, "p95": None, "p99": None}


def test_one_seed_one_result(cell_file: Path) -> None:
    one, same, other = (
        simulate(str(cell_file), "--rounds", "50", "--seed", seed) for seed in "112"
    )
    assert one["wall_s"] != same.pop("wall_s") and one.pop("wall_s")
    assert one == same
    assert one["goodput_tokens_per_s"] != other["goodput_tokens_per_s"]


@pytest.mark.parametrize("mode", ["rounds", "stop-and-wait", "window"])
def test_every_mode_simulates(tmp_path: Path, mode: str) -> None:
    result = simulate(str(write(tmp_path)), "--mode", mode, "--rounds", "200")
    assert result["mode"] == mode and result["rounds"] == 200
    goodput = result["goodput_tokens_per_s"]
    assert goodput == pytest.approx(result["tokens"] / result["simulated_s"])
    assert sum(d["goodput_tokens_per_s"] for d in result["devices"]) == pytest.approx(goodput)


def test_a_table_for_people_that_says_simulated(cell_file: Path) -> None:
    done = run(str(cell_file), "--rounds", "200", "--seed", "9")
    assert done.returncode == 0 and done.stderr == ""
    for part in ("phone-3", "robot", "J/token", "outage", "simulated: ", "seed 9", "200 rounds"):
        assert part in done.stdout
    assert "standard error" in done.stdout and "statistical CSI" in done.stdout


def test_the_table_leaves_out_what_is_not_known_and_who_comes_after_50(tmp_path: Path) -> None:
    many = write(tmp_path)
    many.write_text(
        many.read_text().replace("count = 3", "count = 60").replace("phone", "[b]:phone:")
    )
    done = run(str(many), "--rounds", "5")
    assert "J/token" not in done.stdout and "outage" not in done.stdout
    assert "[b]:phone:-50" in done.stdout and ":phone:-51" not in done.stdout
    assert "and 11 more" in done.stdout


def test_the_log_has_every_verdict_and_every_pass(cell_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "log"
    result = simulate(str(cell_file), "--rounds", "40", "--out", str(folder))
    rounds = pl.read_parquet(folder / "rounds.parquet")
    assert rounds.height == 160 and rounds["num_committed"].sum() == result["tokens"]
    assert rounds["device"].to_list()[:5] == ["phone-1", "phone-2", "phone-3", "robot", "phone-1"]
    assert rounds["at_s"].to_list()[-1] == result["simulated_s"]
    passes = pl.read_parquet(folder / "passes.parquet")
    assert passes.height == 40 and passes["pass_rows"].sum() == rounds["num_draft"].sum() + 160
    assert (folder / "outage.png").stat().st_size > 1000


HOPELESS = "snr_db = 10\nmin_rate_bits_per_s = 1e9"


@pytest.mark.parametrize(
    ("arguments", "parts", "said"),
    [
        (["--rounds", "0"], {}, ["--rounds", "0", "at least 1"]),
        (["--rounds", str(10**12)], {}, ["--rounds", "between 1 and"]),
        (["--rounds", "many"], {}, ["--rounds"]),
        (["--seed", "-1"], {}, ["--seed", "-1", "2^63"]),
        (["--policy", "hetero"], {}, ["--policy", "hetero", "heterogeneous"]),
        (["--mode", "windows"], {}, ["--mode", "windows", "did you mean window?"]),
        (["--out", "/dev/null/x"], {}, ["--out", "/dev/null/x"]),
        (["--out", "/proc"], {}, ["--out", "/proc"]),
        (["--policy", "exhaustive"], {"server": "max_draft_length = 100"}, ["exhaustive"]),
        (
            [],
            {"objective": "min_goodput_tokens_per_s = 1e6"},
            ["min_goodput_tokens_per_s", "not reachable"],
        ),
        (["--policy", "outage-constrained"], {}, ["outage"]),
        (["--policy", "fixed"], {"channel": HOPELESS}, ["'phone-1'", "min_rate_bits_per_s"]),
        ([], {"channel": "snr = 1"}, ["snr", "snr_db"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], parts: dict[str, str], said: list[str]
) -> None:
    done = run(str(write(tmp_path, **parts)), *arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == "" and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for part in said:
        assert part in last
