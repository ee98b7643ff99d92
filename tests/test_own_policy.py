"""examples/own_policy.py runs unchanged wherever a policy is named."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from multispin.cell import load_cell
from multispin.control import bandwidth_for
from multispin.sim.shell import simulate_core
from tests.cli.test_commands import serving

ROOT = Path(__file__).parents[1]
NAME = "examples.own_policy:SameTime"
FACTORY = ROOT / "examples" / "factory.toml"


def run(*arguments: str) -> dict:
    command = (sys.executable, "-m", "multispin", *arguments, "--policy", NAME, "--json")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_in_plan_it_stands_beside_the_others():
    found = run("plan", str(FACTORY), "--compare")
    goodputs = {row["policy"]: row["goodput_tokens_per_s"] for row in found["comparison"]}
    assert found["policy"] == NAME
    assert goodputs[NAME] == found["goodput_tokens_per_s"]
    assert goodputs["server-only"] < goodputs[NAME] < goodputs["heterogeneous"]


@pytest.mark.parametrize("mode", ["rounds", "stop-and-wait", "window"])
def test_in_simulate(mode):
    found = run("simulate", str(FACTORY), "--mode", mode, "--rounds", "60")
    assert found["policy"] == NAME
    assert found["goodput_tokens_per_s"] > 0


class Mortal:
    num_calls = 0

    def plan(self, problem):
        Mortal.num_calls += 1
        if Mortal.num_calls > 2:
            raise ArithmeticError("no more")
        return bandwidth_for(problem, np.full(problem.num_devices, 3))


def test_a_server_whose_policy_fails_goes_on_with_the_grants_in_force():
    """Nothing is lost and nobody waits for a plan that does not come."""
    trace = simulate_core(load_cell(FACTORY), "window", f"{__name__}:Mortal", 600, seed=1)
    assert Mortal.num_calls > 4, "it was asked again"
    assert trace.num_passes == 600
    assert (trace.num_draft[trace.at_s > trace.simulated_s / 2] > 0).any()


def test_a_running_server_takes_it_and_says_when_it_is_none():
    with (
        serving("--policy", NAME) as (_, address),
        urllib.request.urlopen(f"http://{address}/api/cell", timeout=10) as answer,
    ):
        assert json.load(answer)["policy"] == NAME
    command = (sys.executable, "-m", "multispin", "serve", "--target", "ngram", "--policy")
    done = subprocess.run(
        (*command, "nowhere:Policy"),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert "--policy = nowhere:Policy: cannot be imported" in done.stderr


def test_the_log_of_a_server_says_once_why_a_policy_fails(tmp_path):
    (tmp_path / "bad.py").write_text(
        "class Bad:\n    def plan(self, problem):\n        return 1 / 0\n"
    )
    command = (sys.executable, "-m", "multispin", "serve", "--target", "ngram", "--port", "0")
    server = subprocess.Popen(
        (*command, "--policy", "bad:Bad"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        complete = ("complete", "The ", "--server", address, "--draft", "ngram", "--json")
        done = subprocess.run(
            (sys.executable, "-m", "multispin", *complete),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert json.loads(done.stdout)["usage"]["completion_tokens"] == 256
    finally:
        server.terminate()
        _, said = server.communicate(timeout=30)
    assert said.count("plan() raised ZeroDivisionError") == 1
