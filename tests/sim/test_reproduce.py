"""`multispin reproduce`: orders that hold by construction, formulas by other ways, files, words.

Two draws each: what is tested holds in every draw, not on average.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from multispin.control import Problem, evaluate, expected_tokens, solve
from multispin.radio.channel import ConstantEfficiency
from multispin.sim.reproduce import crossover, multi_spin, payload
from multispin.sim.reproduce.alone import centralised, colocated_problem, one_device
from multispin.sim.reproduce.families import FAMILIES, run
from multispin.sim.reproduce.output import check_output, stated, tables, write
from multispin.sim.reproduce.paper import (
    ACCEPTANCE,
    LLAMA,
    PAIRS,
    QWEN,
    Setting,
    clipped_normal,
    draw_all,
)
from multispin.sim.reproduce.result import Curve, Panel, Reproduction, lead
from multispin.sim.rounds import simulate_rounds
from tests.cli.test_commands import run as multispin

SEED = 3
QUICK = ("multi-spin", "crossover", "payload")


@pytest.fixture(scope="module")
def found() -> dict[str, Reproduction]:
    return {name: run(name, 2, SEED, lambda what: None) for name in QUICK}


def random_problem(rng: np.random.Generator, num_devices: int) -> Problem:
    return Problem(
        draft_s_per_token=rng.uniform(0.005, 0.05, num_devices),
        acceptance=rng.uniform(0.1, 0.95, num_devices),
        bits_per_token=rng.uniform(10, 3e4, num_devices),
        bits_per_draft=np.full(num_devices, 592.0),
        uplink=ConstantEfficiency(rng.uniform(1, 6, num_devices)),
        bandwidth_hz=3e6,
        verify_fixed_s=0.03,
        verify_per_device_s=0.01,
        round_trip_s=0.02,
        max_draft_length=12,
    )


def alone(problem: Problem, device: int) -> Problem:
    """One device of it, with band and server to itself."""
    columns = ("draft_s_per_token", "acceptance", "bits_per_token", "bits_per_draft")
    taken = {name: getattr(problem, name)[[device]] for name in columns}
    efficiency = problem.uplink.rate(np.ones(problem.num_devices))[[device]]
    return replace(problem, uplink=ConstantEfficiency(efficiency), **taken)


# --- formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_one_device_and_one_prompt_are_plans_for_a_single_device(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed), 4)
    cells = [alone(problem, k) for k in range(4)]
    best = [solve(cell).goodput_tokens_per_s for cell in cells]
    assert one_device(problem) == pytest.approx(np.mean(best))
    best = [solve(colocated_problem(cell, 0.2)).goodput_tokens_per_s for cell in cells]
    assert centralised(problem, 0.2) == pytest.approx(np.mean(best))


@pytest.mark.parametrize("seed", range(5))
def test_speculation_on_the_server_takes_the_time_of_its_passes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = replace(random_problem(rng, 3), verify_per_token_s=0.002)
    lengths = rng.integers(0, 6, 3)
    share = 0.15

    def pass_s(num_sequences: int, num_rows: int) -> float:
        rows_s = problem.verify_per_token_s * num_rows
        return problem.verify_fixed_s + problem.verify_per_device_s * num_sequences + rows_s

    drafting = [int((lengths > step).sum()) for step in range(lengths.max())]
    expected_s = sum(share * pass_s(num, num) for num in drafting)
    expected_s += pass_s(3, int(lengths.sum()) + 3)
    plan = evaluate(colocated_problem(problem, share), lengths, np.ones(3))
    assert plan.round_s == pytest.approx(expected_s)


def test_moments_of_the_clipped_law_are_those_of_its_samples() -> None:
    """A million samples: five standard errors, so that one run in 10^5 fails."""
    rng = np.random.default_rng(SEED)
    for mean, std in dict.fromkeys(LLAMA.tasks + QWEN.tasks):
        samples = np.clip(rng.normal(mean, std, 1_000_000), *ACCEPTANCE)
        clipped_mean, clipped_std = clipped_normal(np.array([mean]), np.array([std]))
        assert clipped_mean == pytest.approx(samples.mean(), abs=5 * 0.35e-3)
        assert clipped_std == pytest.approx(samples.std(), abs=5 * 0.35e-3)


@pytest.mark.parametrize("length", [0, 3, 25])
def test_tokens_of_a_round_average_over_prompts_by_the_rounds_they_take(length: int) -> None:
    """Quadrature against 400,000 prompts: an error of 0.3 %, so that 2 % is six of them."""
    mean, std = 0.8, 0.2
    concentration = mean * (1 - mean) / std**2 - 1
    rng = np.random.default_rng(SEED)
    prompts = rng.beta(mean * concentration, (1 - mean) * concentration, 400_000)
    rounds = (1 / expected_tokens(prompts, np.full(len(prompts), length))).mean()
    assert multi_spin.tokens_per_round(mean, std, length) == pytest.approx(1 / rounds, rel=0.02)


def test_unknown_prompts_are_planned_as_they_are_simulated() -> None:
    """4,000 rounds of a draw have an error of 1 %: five of them, one run in 10^6 fails."""
    setting = Setting(LLAMA)
    [draw] = draw_all(LLAMA, 1, SEED)
    cell = setting.cell(draw, knows_prompts=False)
    for policy, goodput in zip(
        multi_spin.UNKNOWN, multi_spin.goodputs_by_task(setting, draw), strict=True
    ):
        trace = simulate_rounds(cell, policy, 4000, SEED)
        assert trace.num_tokens / trace.simulated_s == pytest.approx(goodput, rel=0.05)


def test_cells_share_their_devices() -> None:
    [draw] = draw_all(LLAMA, 1, SEED)
    few, many = (Setting(LLAMA, num_devices=num).cell(draw).problem for num in (10, 24))
    assert (few.acceptance == many.acceptance[:10]).all()
    assert (few.draft_s_per_token == many.draft_s_per_token[:10]).all()
    assert (few.alone_rate == many.alone_rate[:10]).all()


# --- orders ------------------------------------------------------------------------------------


def test_ours_is_never_below_another_policy(found: dict[str, Reproduction]) -> None:
    policies = (
        multi_spin.LENGTH_ONLY,
        multi_spin.HOMOGENEOUS,
        multi_spin.FIXED,
        multi_spin.ALONE,
        "bandwidth-only",
    )
    figures = [f for f in found["multi-spin"].figures if "one device" in _labels(f.panels[0])]
    assert len(figures) == 3
    for panel in (panel for figure in figures for panel in figure.panels):
        ours = panel.curve(multi_spin.OURS).samples
        for label in policies:
            assert (ours >= panel.curve(label).samples * (1 - 1e-9)).all(), (panel.title, label)


def test_the_server_alone_gives_a_token_to_each_device_in_a_pass(
    found: dict[str, Reproduction],
) -> None:
    figures = {figure.name: figure for figure in found["multi-spin"].figures}
    for index, pair in enumerate(PAIRS):
        curve = figures["devices"].panels[index].curve(multi_spin.ALONE)
        num = np.array(curve.x)
        expected = num / (pair.verify_fixed_s + pair.verify_per_device_s * num)
        np.testing.assert_allclose(curve.samples, np.broadcast_to(expected, (2, len(num))).T)


def test_a_faster_server_alone_is_faster_in_proportion(found: dict[str, Reproduction]) -> None:
    for figure, pair in zip(found["crossover"].figures, PAIRS, strict=True):
        curve = figure.panels[0].curve(crossover.ALONE)
        pass_s = pair.verify_fixed_s + 20 * pair.verify_per_device_s
        np.testing.assert_allclose(curve.mean, 20 / pass_s * np.array(curve.x))


def test_fewer_bits_and_more_bandwidth_never_hurt(found: dict[str, Reproduction]) -> None:
    """Of the optimum; the solver may be 1e-4 short of it."""
    for panel in found["payload"].figures[0].panels:
        curves = [panel.curve(label).samples for label in payload.PAYLOADS]
        for fewer, more in itertools.pairwise(curves):
            assert (fewer >= more * (1 - 1e-4)).all()
        for curve in curves:
            assert (curve[1:] >= curve[:-1] * (1 - 1e-4)).all()
            assert (curve >= panel.curve(payload.ALONE).samples * (1 - 1e-9)).all()


def test_simulated_points_lie_on_the_planned_lines(found: dict[str, Reproduction]) -> None:
    """100 rounds of a draw have an error of up to 2 %: five of them for each point. Points share
    their draws, two of each pair, so that all together have one of below 1 %.
    """
    ratios = []
    for name in QUICK:
        for figure in found[name].figures:
            for panel in figure.panels if figure.name != "unknown-prompts" else ():
                for curve in panel.curves:
                    if curve.kind == "simulated":
                        plan = panel.curve(curve.label)
                        at = [plan.x.index(x) for x in curve.x]
                        ratios.append((curve.samples / plan.samples[at]).ravel())
    every = np.concatenate(ratios)
    assert len(every) > 100
    assert abs(every - 1).max() < 0.1
    assert abs(every.mean() - 1) < 0.03


def test_lead_says_where_lines_cross() -> None:
    def curve(*y: float) -> Curve:
        return Curve("", "planned", (1.0, 2.0, 4.0), np.array([y, y]).T)

    level = curve(1, 1, 1)
    assert lead(curve(2, 2, 2), level) == "ahead"
    assert lead(curve(0, 0, 0), level) == "behind"
    assert lead(curve(2, 2, 0), level) == "ahead up to 3, then behind"
    assert lead(curve(0, 2, 0), level) == "behind up to 1.5, then ahead up to 3, then behind"


# --- files and words ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_figures_and_numbers_are_written(
    found: dict[str, Reproduction], name: str, tmp_path: Path
) -> None:
    files = write(found[name], tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert len(files) == 1 + 2 * len(found[name].figures)
    for file in files:
        if file.suffix == ".png":
            picture = imread(file)
            assert picture.shape[0] > 400
            assert (picture[..., :3].mean(axis=2) < 0.9).mean() > 0.01  # is not white
        elif file.suffix == ".svg":
            tags = [element.tag.rpartition("}")[2] for element in ET.parse(file).iter()]
            assert tags.count("path") > 50
    with files[0].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found[name].rows())
    for row, point in zip(rows, found[name].rows(), strict=True):
        assert float(row["goodput_tokens_per_s"]) == point["goodput_tokens_per_s"]
        assert (row["kind"], row["seed"]) == (point["kind"], str(SEED))
    printed = io.StringIO()
    console = Console(file=printed, width=300)
    for table in tables(found[name]):
        console.print(table)
    numbers = [word for word in printed.getvalue().split() if _is_figure(word)]
    expected = [f"{float(row['goodput_tokens_per_s']):.1f}" for row in rows]
    assert not set(expected) - set(numbers)


def test_the_same_files_each_time(found: dict[str, Reproduction], tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        check_output(folder)
    first, second = (write(found["payload"], folder) for folder in folders)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_seed_and_parameters_are_stated(found: dict[str, Reproduction]) -> None:
    for name in QUICK:
        words = stated(found[name])
        assert words.startswith(f"seed {SEED}, 2 draws")
        for value in ("40 ms a token", "17 dB", "10 MHz"):
            assert value in words


def test_command_prints_one_object_and_writes_where_it_is_told(tmp_path: Path) -> None:
    done = multispin("reproduce", "payload", "--draws", "2", "--json", "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["name"], result["draws"], result["seed"]) == ("payload", 2, 0)
    assert len(result["points"]) > 50
    assert all(Path(file).stat().st_size > 1000 for file in result["files"])
    assert "payload" in done.stderr  # what it is doing


def test_list_names_every_family() -> None:
    done = multispin("reproduce", "--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(FAMILIES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["multispin"], "NAME = multispin: did you mean multi-spin?"),
        (["pay"], "did you mean payload?"),
        ([], "--list"),
        (["payload", "--draws", "1"], "--draws = 1"),
        (["payload", "--seed", "-1"], "--seed = -1"),
        (["payload", "--out", __file__], "--out"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    done = multispin("reproduce", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_window_beats_waiting_and_waiting_beats_rounds() -> None:
    """Means over two draws at every round trip; each run is a minute of writing or more."""
    for panel in run("window", 2, SEED, lambda what: None).figures[0].panels:
        ahead, waits, rounds = (
            panel.curve(label, "simulated").mean for label in ("window", "stop-and-wait", "rounds")
        )
        assert (waits > rounds).all()
        assert (ahead > rounds).all()
        assert ahead.sum() > waits.sum()


def _labels(panel: Panel) -> str:
    return " ".join(curve.label for curve in panel.curves)


def _is_figure(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal() and "." in word
