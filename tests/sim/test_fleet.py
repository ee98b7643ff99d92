"""A fleet at the level of texts: nothing is lost, made up, or written faster than planned."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from multispin.cell.cluster import Cluster, Target, load_cluster
from multispin.control.replicas import NOWHERE
from multispin.errors import BadInput
from multispin.sim import fleet as fleet_module
from multispin.sim.fleet import DRAIN, FAILURE, MOVE, NEW, Site, simulate_fleet
from multispin.sim.steady import SteadyState

ROOT = Path(__file__).parents[2]
CITY = ROOT / "examples" / "city" / "cluster.toml"


def small(target: dict | None = None, **changes: object) -> Cluster:
    """The city's cluster with few devices; changes of its fleet and of its target."""
    city = load_cluster(CITY)
    fleet = replace(city.fleet, **{"devices": 4000, "radio_cells": 10, "hours": 0.25, **changes})
    section = replace(
        city.targets[0].section,
        **{"min_replicas": 2, "max_replicas": 4, "max_sessions": 40, **(target or {})},
    )
    return Cluster((Target(section, city.targets[0].file, city.targets[0].folder),), fleet)


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """After every step: nobody has more than its room, nobody is where nobody serves."""
    original = Site.write

    def write(self, now, in_cell):
        at = self.texts.replica[self.texts.replica != NOWHERE]
        taken = np.bincount(at, minlength=len(self.up_at))
        assert taken.max(initial=0) <= self.section.max_sessions
        assert (taken[self.up_at > now] == 0).all()
        return original(self, now, in_cell)

    monkeypatch.setattr(Site, "write", write)


def test_every_token_of_every_text_is_written_once(monkeypatch):
    wanted = []
    original = fleet_module.opened

    def opened(key, cell, prompt, answer, now):
        wanted.append(answer.sum())
        return original(key, cell, prompt, answer, now)

    monkeypatch.setattr(fleet_module, "opened", opened)
    trace = simulate_fleet(small(failures_per_hour=20.0, moves_per_hour=30.0), "heterogeneous", 1)
    [site] = trace.sites
    assert len(site.paused(FAILURE)) > 20, "texts lost their replica"
    assert len(site.paused(MOVE)) > 20
    assert site.num_lost == 0
    assert trace.tokens.sum() + site.texts.left.sum() == pytest.approx(sum(wanted))


def test_a_text_that_lost_its_replica_reads_again_what_it_had():
    site = Site(small(target={"prefill_s_per_token": 0.01}).targets[0], 10, "heterogeneous")
    one = np.ones(1, np.int64)
    site.texts.add(fleet_module.opened(one.astype(np.uint64), one, 100 * one, 4000 * one, 0.0))
    site.place(0.0)
    first = site.texts.ready_at[0]
    assert first == pytest.approx(100 * 0.01 + site.round_trip_s)
    for now in range(10):
        site.write(float(now), np.ones(10, np.int64))
    written = site.texts.written[0]
    assert written > 50
    site.fail(10.0, np.arange(4) == site.texts.replica[0])
    site.place(15.0)
    assert site.texts.replica[0] == NOWHERE, "nobody knows yet"
    site.place(20.0)
    [pause] = site.paused(FAILURE)
    again = pause - fleet_module.DETECT_S
    assert again == pytest.approx((100 + written) * 0.01 + site.round_trip_s)


def test_a_replica_that_failed_serves_again_after_its_start():
    target = small().targets[0]
    site = Site(target, 10, "heterogeneous")
    site.fail(100.0, np.array([True, False, True, False]))
    start_s = target.section.start_s
    assert site.up_at.tolist() == [100.0 + start_s, 0.0, np.inf, np.inf]


def test_little_s_law_holds():
    """Open texts = texts a second x seconds of a text; within 5 %, 5 standard errors and more."""
    trace = simulate_fleet(small(hours=0.5, target={"min_replicas": 4}), "heterogeneous", 3)
    [site] = trace.sites
    opened = len(site.paused(NEW))
    seconds = len(trace.tokens)
    rate = trace.tokens.sum() / trace.sessions.sum()
    of_a_text = site.paused(NEW).mean() + 200 / rate
    assert trace.sessions.mean() == pytest.approx(opened / seconds * of_a_text, rel=0.05)


def test_the_same_seed_gives_the_same_run_and_another_does_not():
    runs = [simulate_fleet(small(hours=0.05), "heterogeneous", seed) for seed in (1, 1, 2)]
    assert (runs[0].tokens == runs[1].tokens).all()
    assert (runs[0].tokens != runs[2].tokens).any()


def test_replicas_come_with_the_load_and_go_without_it():
    night = [0.0] * 24
    night[0] = 8.0
    cluster = small(
        hours=1.0,
        start_hour=0.0,
        load_by_hour=night,
        target={"min_replicas": 1, "max_replicas": 20},
    )
    trace = simulate_fleet(cluster, "heterogeneous", 1)
    replicas = trace.replicas[:, 0]
    assert replicas[0] == 1
    assert replicas[:600].max() > 4
    assert replicas[-1] < replicas[:600].max()
    assert len(trace.sites[0].paused(DRAIN)) > 0
    assert trace.sites[0].num_lost == 0


def test_where_there_is_no_room_texts_wait_and_are_counted_when_they_give_up():
    cluster = small(target={"min_replicas": 1, "max_replicas": 1, "max_sessions": 4})
    trace = simulate_fleet(cluster, "heterogeneous", 1)
    assert trace.sites[0].num_lost > 100
    assert trace.sites[0].paused(NEW).max() <= fleet_module.PATIENCE_S + 2


def test_the_table_is_what_is_planned_and_between_its_points_in_between():
    [target] = small().targets
    table = SteadyState(target, "heterogeneous")
    band = target.file.cell.bandwidth_hz
    problem = target.problem(8, band)
    assert problem.num_devices == 8
    assert problem.bandwidth_hz == 8 * band
    one, between, two = table.rate(np.array([8.0, 11.0, 16.0]), np.full(3, band))
    assert two < between < one
    alone = SteadyState(target, "server-only").rate(np.array([1.0]), np.array([band]))[0]
    server = target.file.server
    assert alone == pytest.approx(1 / (server.verify_fixed_s + server.verify_per_token_s))


def test_devices_are_mixed_as_in_the_file():
    [target] = small().targets
    for num in (1, 7, 14, 20):
        drafting = target.problem(num, 1e6).draft_s_per_token
        assert abs((drafting == 0.02).sum() - num * 6 / 7) <= 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("devices = 1_000_000", "devices = 0", "fleet.devices = 0"),
        ("devices = 1_000_000", "device = 5", "did you mean devices"),
        ("start_hour = 18", "start_hour = 25", "must be between 0 and 24"),
        ("0.4, 0.3,", "0.4,", "needs 24 numbers"),
        ("min_replicas = 200", "min_replicas = 900", "must be at least min_replicas, 900"),
        ('cell = "cell.toml"', 'cell = "nowhere.toml"', "cannot be read"),
        ('cell = "cell.toml"', 'cell = "cluster.toml"', "unknown key"),
        ("[[target]]", "[target]", "at least one [[target]] table"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, says):
    text = CITY.read_text()
    assert old in text
    shutil.copytree(CITY.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "cluster.toml").write_text(text.replace(old, new))
    with pytest.raises(BadInput, match=re.escape(says)):
        load_cluster(tmp_path / "cluster.toml")


def test_simulate_takes_a_cluster(tmp_path):
    text = CITY.read_text().replace("1_000_000", "2_000").replace("min_replicas = 200", "")
    text = text.replace("radio_cells = 2000", "radio_cells = 4").replace("hours = 1", "hours = 0.1")
    shutil.copytree(CITY.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "cluster.toml").write_text(text)
    command = (sys.executable, "-m", "multispin", "simulate", str(tmp_path / "cluster.toml"))
    found = subprocess.run(
        (*command, "--json"), capture_output=True, text=True, timeout=120, check=True
    )
    result = json.loads(found.stdout)
    assert result["devices"] == 2000
    [target] = result["targets"]
    assert target["lost_texts"] == 0
    assert target["texts"] > 100
    refused = subprocess.run(
        (*command, "--mode", "window"), capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 2
    assert "--mode = window" in refused.stderr
