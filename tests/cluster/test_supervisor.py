"""What the supervisor wants, from what it is told: numbers, names, order, shares; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from msgspec.structs import replace

from multispin.cell.cluster_sections import (
    ClusterSection,
    RadioCellSection,
    ServeSection,
    TargetSection,
)
from multispin.cell.deployment import DIRECTORY, Deployment
from multispin.cluster.charge import Charge
from multispin.cluster.keeper import Condition, KeeperState
from multispin.cluster.supervisor import SCALE_S, Drain, End, Start, Supervisor
from multispin.wire.replica import CellLoad, Status

HEAD = "192.0.2.1"


def deployment(**changes: object) -> Deployment:
    target = replace(
        TargetSection("chat", 10, model="ngram", min_replicas=2, max_replicas=6), **changes
    )
    return Deployment(ClusterSection("test"), [target])


def status(name: str, num_sessions: int = 0, **changes: object) -> Status:
    told = Status(name, "ok", None, num_sessions, 10, 0, 0.0, 0.0, 0, 0.01, 0.001, 0.001)
    return replace(told, **changes)


@dataclass
class FakeFleet:
    """Keepers whose children do as they are told at once; sessions are where a test puts them."""

    supervisor: Supervisor
    keepers: dict[str, KeeperState] = field(default_factory=dict)
    statuses: dict[str, Status] = field(default_factory=dict)
    now: float = 0.0
    drained: list[str] = field(default_factory=list)
    charges: dict[str, Charge] = field(default_factory=dict)

    def step(self, seconds: float = 1.0) -> list[object]:
        self.now += seconds
        orders = self.supervisor.orders(self.now, dict(self.keepers), dict(self.statuses))
        for order in orders:
            match order:
                case Start(charge):
                    assert charge.name not in self.keepers
                    self.charges[charge.name] = charge
                    self.keepers[charge.name] = KeeperState(
                        charge.name,
                        charge.target,
                        "up",
                        charge.digest,
                        charge.server(HEAD, charge.port),
                    )
                    if charge.target != DIRECTORY:
                        self.statuses[charge.name] = status(charge.name)
                case Drain(name):
                    self.drained.append(name)
                    self.keepers[name] = replace(self.keepers[name], condition="draining")
                case End(name):
                    assert self.keepers.pop(name).condition in ("ended", "waiting")
                    self.statuses.pop(name, None)
        return list(orders)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.step()
            for keeper in self.keepers.values():
                if keeper.condition == "draining":
                    self.keepers[keeper.name] = replace(keeper, condition="ended")

    @property
    def names(self) -> list[str]:
        return sorted(name for name, keeper in self.keepers.items() if keeper.target == "chat")

    def load(self, num_sessions: int) -> None:
        for name in self.names:
            self.statuses[name] = status(name, num_sessions)


def fleet(**changes: object) -> FakeFleet:
    return FakeFleet(Supervisor(deployment(**changes), HEAD))


def test_it_starts_the_least_number_and_the_directory_and_then_rests() -> None:
    those = fleet()
    those.step()
    assert those.names == ["chat-0", "chat-1"]
    assert "directory-0" in those.keepers
    ports = [charge.port for charge in those.charges.values()]
    assert len(set(ports)) == len(ports)
    assert [those.step() for _ in range(5)] == [[]] * 5


def test_a_supervisor_that_is_new_finds_what_is_there_and_disturbs_nobody() -> None:
    those = fleet()
    those.step()
    those.load(9)
    those.run(2 * int(SCALE_S))
    before = dict(those.keepers)
    assert len(those.names) > 2
    those.load(7)
    those.supervisor = Supervisor(deployment(), HEAD)
    assert [those.step() for _ in range(60)] == [[]] * 60
    assert those.keepers == before


def test_load_brings_more_up_to_the_most() -> None:
    those = fleet()
    those.step()
    for _ in range(8):
        those.load(10)
        those.run(int(SCALE_S))
    assert len(those.names) == 6
    assert those.drained == []


def test_what_is_not_needed_goes_the_emptiest_first_and_never_below_the_least() -> None:
    those = fleet(min_replicas=4)
    those.run(2)
    those.supervisor = Supervisor(deployment(), HEAD)
    for name, num in zip(those.names, (3, 0, 2, 1), strict=True):
        those.statuses[name] = status(name, num)
    those.run(1000)
    assert those.drained == ["chat-1", "chat-3"]
    assert those.names == ["chat-0", "chat-2"]


def test_one_that_does_not_serve_goes_before_an_empty_one() -> None:
    those = fleet(min_replicas=3)
    those.step()
    those.keepers["chat-0"] = replace(those.keepers["chat-0"], condition="failed")
    those.supervisor = Supervisor(deployment(max_replicas=2), HEAD)
    those.step()
    assert those.drained == ["chat-0"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, {"num_rows_waiting": 1000, "pass_s_per_row": 0.001}),
        ({"max_s_per_verdict": 0.1}, {"s_per_verdict": 0.2}),
    ],
)
def test_waiting_rows_and_slow_verdicts_bring_more_too(
    changes: dict[str, object], told: dict[str, object]
) -> None:
    those = fleet(**changes)
    those.step()
    those.statuses = {name: status(name, 1, **told) for name in those.names}
    those.run(2 * int(SCALE_S))
    assert len(those.names) > 2


def test_a_moment_of_waiting_rows_brings_nobody() -> None:
    """A long prompt, say: one look of fifteen."""
    those = fleet()
    those.run(2)
    calm = dict(those.statuses)
    those.statuses["chat-0"] = status("chat-0", 1, num_rows_waiting=5000, pass_s_per_row=0.001)
    those.step()
    those.statuses = calm
    those.run(2 * int(SCALE_S))
    assert len(those.names) == 2


def test_rows_wait_for_those_who_are_about_to_serve_before_more_are_asked_for() -> None:
    those = fleet(min_replicas=3)
    those.step()
    those.statuses = {
        name: status(name, 1, num_rows_waiting=5000, pass_s_per_row=0.001)
        for name in those.names[:2]
    }
    those.run(4 * int(SCALE_S))
    assert len(those.names) == 3


def test_a_drained_one_is_replaced_under_a_free_name() -> None:
    those = fleet()
    those.step()
    those.keepers["chat-0"] = replace(those.keepers["chat-0"], condition="draining")
    those.step()
    assert those.names == ["chat-0", "chat-1", "chat-2"]
    those.keepers["chat-0"] = replace(those.keepers["chat-0"], condition="ended")
    those.step()
    assert those.names == ["chat-1", "chat-2"]


def test_a_changed_file_replaces_one_after_the_other() -> None:
    those = fleet(min_replicas=3)
    those.step()
    old = dict(those.charges)
    changed = deployment(min_replicas=3, serve=ServeSection(ctx_size=512))
    those.supervisor = Supervisor(changed, HEAD)
    for _ in range(20):
        those.step()
        leaving = [k for k in those.keepers.values() if k.condition == "draining"]
        assert len(leaving) <= 1
        assert len(those.names) - len(leaving) >= 2
        for keeper in leaving:
            those.keepers[keeper.name] = replace(keeper, condition="ended")
    assert len(those.drained) == 3
    assert those.names == ["chat-0", "chat-1", "chat-2"]
    digests = {those.keepers[name].digest for name in those.names}
    assert digests.isdisjoint(charge.digest for charge in old.values())
    assert all(those.supervisor.is_current(keeper) for keeper in those.keepers.values())
    assert those.step() == []


@pytest.mark.parametrize("condition", ["starting", "waiting"])
def test_the_next_one_is_not_replaced_before_the_last_one_serves(condition: Condition) -> None:
    those = fleet(min_replicas=3)
    those.step()
    those.supervisor = Supervisor(
        deployment(min_replicas=3, serve=ServeSection(ctx_size=512)), HEAD
    )
    those.run(1)
    [first] = those.drained
    those.run(2)  # it has ended, and is started again
    assert those.drained == [first]
    back = those.keepers[first]
    those.keepers[first] = replace(back, condition=condition)
    assert [those.step() for _ in range(5)] == [[]] * 5
    those.keepers[first] = replace(back, condition="failed")  # which may be so for ever
    those.step()
    assert len(those.drained) == 2


def test_a_target_that_is_no_longer_in_the_file_drains() -> None:
    those = fleet()
    those.step()
    other = replace(deployment().targets[0], name="other")
    those.supervisor = Supervisor(Deployment(ClusterSection("test"), [other]), HEAD)
    those.step()
    assert sorted(those.drained) == ["chat-0", "chat-1"]


def test_directories_follow_their_ports() -> None:
    those = fleet()
    those.step()
    two = replace(deployment(), cluster=ClusterSection("test", directory_ports=(8600, 8599)))
    those.supervisor = Supervisor(two, HEAD)
    those.step()
    assert {"directory-0", "directory-1"} <= those.keepers.keys()
    those.supervisor = Supervisor(deployment(), HEAD)
    those.step()
    assert those.drained == ["directory-1"]


def test_nothing_is_drained_where_nothing_was_placed() -> None:
    those = fleet(min_replicas=3)
    those.step()
    those.keepers["chat-2"] = KeeperState("chat-2", "chat", "waiting")
    del those.statuses["chat-2"]
    those.supervisor = Supervisor(deployment(max_replicas=2), HEAD)
    assert those.step() == [End("chat-2")]


def test_the_list_has_who_serves_drains_or_is_about_to_be_back() -> None:
    those = fleet(min_replicas=4)
    those.step()
    keepers = dict(those.keepers)
    keepers["chat-0"] = replace(keepers["chat-0"], condition="draining")
    keepers["chat-1"] = replace(keepers["chat-1"], condition="starting")
    keepers["chat-2"] = replace(keepers["chat-2"], condition="starting", server="")
    keepers["chat-10"] = replace(keepers["chat-3"], name="chat-10")
    listed = those.supervisor.replica_list(dict(sorted(keepers.items(), reverse=True)))
    assert [replica.name for replica in listed.replicas] == [
        "chat-0",
        "chat-1",
        "chat-3",
        "chat-10",
    ]
    assert [target.name for target in listed.targets] == ["chat"]


def test_the_uplink_of_a_cell_is_shared_by_the_replicas_that_serve_it() -> None:
    cells = [RadioCellSection("north", 1000.0), RadioCellSection("south", 500.0)]
    supervisor = Supervisor(replace(deployment(), cells=cells), HEAD)

    def told(name: str, *loads: CellLoad) -> Status:
        return status(name, cells=list(loads))

    statuses = {
        "chat-0": told("chat-0", CellLoad("north", 3, 0.0, 0.0), CellLoad("south", 1, 500.0, 0.1)),
        "chat-1": told("chat-1", CellLoad("north", 1, 0.0, 0.0), CellLoad("unknown", 9, 1.0, 1.0)),
        "chat-2": told("chat-2"),
    }
    shares = supervisor.shares(statuses)
    assert shares == {"chat-0": {"north": 750.0, "south": 500.0}, "chat-1": {"north": 250.0}}


def test_shares_move_to_where_they_bring_more_and_stay_within_the_budget() -> None:
    supervisor = Supervisor(replace(deployment(), cells=[RadioCellSection("north", 1000.0)]), HEAD)
    budgets, worth = np.array([500.0, 500.0]), np.array([1.0, 4.0])
    for _ in range(50):  # goodput worth x log(budget): prices fall as 1 / budget
        statuses = {
            f"chat-{i}": status(
                f"chat-{i}", cells=[CellLoad("north", 5, budgets[i], worth[i] / budgets[i])]
            )
            for i in range(2)
        }
        shares = supervisor.shares(statuses)
        budgets = np.array([shares[f"chat-{i}"]["north"] for i in range(2)])
        assert budgets.sum() == pytest.approx(1000.0)
    assert budgets == pytest.approx([200.0, 800.0], rel=0.01)
