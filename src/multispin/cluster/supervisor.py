"""What there should be: how many replicas, which start and which go, and who gets which uplink.

No Ray, no clock and no sockets: who asks says what the keepers and the replicas have told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from multispin.cell.cluster_sections import TargetSection
from multispin.cell.deployment import DIRECTORY, Deployment
from multispin.cell.replica_list import ListedReplica, ListedTarget, ReplicaList
from multispin.cluster.charge import Charge, directory_charge, replica_charge
from multispin.cluster.keeper import KeeperState
from multispin.control.autoscale import AIM, Autoscaler, Scaling
from multispin.control.uplink import split_uplink
from multispin.wire.replica import CellLoad, Status

SCALE_S = 15.0  # between two looks at the number of replicas
WAIT_S = 0.5  # of passes, that rows may wait for
NO_LOAD = CellLoad("", 0, 0.0, 0.0)

Keepers: TypeAlias = Mapping[str, KeeperState]
Statuses: TypeAlias = Mapping[str, Status]  # of those that there is a link to


class Start(NamedTuple):
    charge: Charge


class Drain(NamedTuple):
    name: str


class End(NamedTuple):
    """Its child has ended: the keeper is not needed any more."""

    name: str


Order: TypeAlias = Start | Drain | End


class Supervisor:
    """``head`` is the address of the machine that has the first directory."""

    def __init__(self, deployment: Deployment, head: str) -> None:
        self.deployment = deployment
        self._head = head
        self._replicas = [_Replicas(target) for target in deployment.targets]
        self._directories = {
            charge.name: charge
            for index in range(len(deployment.cluster.directory_ports))
            for charge in [directory_charge(deployment, index)]
        }

    @property
    def num_wanted(self) -> dict[str, int]:
        return {replicas.target.name: replicas.num_wanted for replicas in self._replicas}

    def orders(self, now: float, keepers: Keepers, statuses: Statuses) -> list[Order]:
        """What is to be done now."""
        known = {DIRECTORY, *(target.name for target in self.deployment.targets)}
        present = [keeper for keeper in keepers.values() if not _is_leaving(keeper)]
        orders: list[Order] = [End(k.name) for k in keepers.values() if k.condition == "ended"]
        orders += [_leave(keeper) for keeper in present if keeper.target not in known]
        orders += self._direct(keepers)
        for replicas in self._replicas:
            mine = [keeper for keeper in present if keeper.target == replicas.target.name]
            replicas.count(now, mine, statuses)
            orders += self._move(replicas, mine, keepers, statuses)
        return orders

    def is_current(self, keeper: KeeperState) -> bool:
        """Whether it is wanted as it is."""
        target = self.deployment.target(keeper.target)
        charge = self._charge(target, keeper.name) if target else None
        charge = charge or self._directories.get(keeper.name)
        return charge is not None and not _is_outdated(keeper, charge)

    def replica_list(self, keepers: Keepers) -> ReplicaList:
        """For directories: who serves, is about to again, or drains."""
        listed = [
            ListedReplica(keeper.name, keeper.target, keeper.server)
            for keeper in sorted(keepers.values(), key=_order)
            if keeper.server and self.deployment.target(keeper.target)
        ]
        return ReplicaList([_listed(target) for target in self.deployment.targets], listed)

    def shares(self, statuses: Statuses) -> dict[str, dict[str, float]]:
        """For each replica with devices of a radio cell, its next share of that cell's uplink."""
        shares: dict[str, dict[str, float]] = {name: {} for name in statuses}
        for cell in self.deployment.cells:
            loads = {name: _load_in(cell.name, status) for name, status in statuses.items()}
            there = [name for name, load in loads.items() if load.num_devices > 0]
            split = split_uplink(
                cell.budget,
                np.array([loads[name].num_devices for name in there], np.int64),
                np.array([loads[name].budget for name in there], np.float64),
                np.array([loads[name].price for name in there], np.float64),
            )
            for name, share in zip(there, split.tolist(), strict=True):
                shares[name][cell.name] = share
        return {name: of_cells for name, of_cells in shares.items() if of_cells}

    # --- orders --------------------------------------------------------------------------------

    def _direct(self, keepers: Keepers) -> Iterator[Order]:
        """Directories: one for each port, all as the file has them now."""
        for charge in self._directories.values():
            if charge.name not in keepers:
                yield Start(charge)
        for keeper in keepers.values():
            if keeper.target == DIRECTORY and not _is_leaving(keeper):
                charge_now = self._directories.get(keeper.name)
                if charge_now is None or _is_outdated(keeper, charge_now):
                    yield _leave(keeper)

    def _move(
        self,
        replicas: _Replicas,
        present: Sequence[KeeperState],
        keepers: Keepers,
        statuses: Statuses,
    ) -> Iterator[Order]:
        """Towards the number that is wanted; else, one after the other, towards the charges as they
        are now."""
        target, surplus = replicas.target, len(present) - replicas.num_wanted
        num_changing = sum(
            keeper.target == target.name and _is_leaving(keeper) and not self.is_current(keeper)
            for keeper in keepers.values()
        )  # they come back under their names, which texts know
        leaving = sorted(present, key=lambda keeper: _worth(keeper, statuses))
        if surplus < 0:
            names = (f"{target.name}-{index}" for index in itertools.count())
            free = (name for name in names if name not in keepers)
            for name in itertools.islice(free, max(-surplus - num_changing, 0)):
                yield Start(self._charge(target, name))
        elif surplus > 0:
            yield from (_leave(keeper) for keeper in leaving[:surplus])
        elif self._has_settled(target, keepers):
            outdated = (keeper for keeper in leaving if not self.is_current(keeper))
            yield from (_leave(keeper) for keeper in itertools.islice(outdated, 1))

    def _has_settled(self, target: TargetSection, keepers: Keepers) -> bool:
        """None comes or goes. One that cannot start does not keep the others as they were."""
        mine = [keeper for keeper in keepers.values() if keeper.target == target.name]
        return all(keeper.condition in ("up", "failed") for keeper in mine)

    def _charge(self, target: TargetSection, name: str) -> Charge:
        index = int(name.rpartition("-")[2])
        return replica_charge(self.deployment, target, index, self._head)


class _Replicas:
    """How many of one target there should be."""

    def __init__(self, target: TargetSection) -> None:
        self.target = target
        self.num_wanted = 0
        self._scaler = Autoscaler(Scaling(target.min_replicas, target.most_replicas))
        self._looked_at = -math.inf
        self._loads: list[float] = []  # since then

    def count(self, now: float, present: Sequence[KeeperState], statuses: Statuses) -> None:
        there = [statuses[keeper.name] for keeper in present if keeper.name in statuses]
        num = self.num_wanted or max(len(present), self.target.min_replicas)  # as they were found
        self._loads.append(self._load(num, there))
        if now - self._looked_at >= SCALE_S:
            load = sum(self._loads) / len(self._loads)
            self.num_wanted = self._scaler.wanted(now, num, load)
            self._looked_at, self._loads = now, []

    def _load(self, num: int, there: Sequence[Status]) -> float:
        """1 is what is aimed at: the largest of sessions over the part of the places that should be
        taken; and, once all replicas serve, the time that waiting rows take over WAIT_S, and the
        time per verdict over its aim."""
        load = sum(s.num_sessions for s in there) / (AIM * num * self.target.max_sessions)
        if len(there) < num:  # what those will do about it is not known yet
            return load
        load = max(load, _mean(s.num_rows_waiting * s.pass_s_per_row for s in there) / WAIT_S)
        if self.target.max_s_per_verdict is not None:
            load = max(load, _mean(s.s_per_verdict for s in there) / self.target.max_s_per_verdict)
        return load


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _is_leaving(keeper: KeeperState) -> bool:
    return keeper.condition in ("draining", "ended")


def _leave(keeper: KeeperState) -> Order:
    """Nothing is there to be drained where no keeper has been placed."""
    return (End if keeper.condition == "waiting" else Drain)(keeper.name)


def _is_outdated(keeper: KeeperState, charge: Charge) -> bool:
    return keeper.digest not in ("", charge.digest)


def _worth(keeper: KeeperState, statuses: Statuses) -> tuple[bool, int, int]:
    """Who goes first: one that does not serve, then the emptiest, then the last."""
    status = statuses.get(keeper.name)
    return keeper.condition == "up", status.num_sessions if status else 0, -_order(keeper)[1]


def _order(keeper: KeeperState) -> tuple[str, int]:
    name, _, index = keeper.name.rpartition("-")
    return name, int(index)


def _listed(target: TargetSection) -> ListedTarget:
    return ListedTarget(target.name, target.quality, target.watts, target.cost_per_hour)


def _load_in(cell: str, status: Status) -> CellLoad:
    return next((load for load in status.cells if load.cell == cell), NO_LOAD)
