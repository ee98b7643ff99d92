"""The supervisor at work: asks keepers, watches replicas, gives orders, shares out the uplink."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NoReturn, Protocol

from multispin.cell.deployment import DIRECTORY, Deployment
from multispin.cell.replica_list import ReplicaList
from multispin.cluster.charge import Charge
from multispin.cluster.keeper import KeeperState
from multispin.cluster.overview import Overview, row
from multispin.cluster.supervisor import Drain, End, Order, Start, Supervisor
from multispin.cluster.watches import Watches
from multispin.wire.replica import Budgets

LOOK_S = 1.0
SHARE_S = 5.0  # between two new shares of an uplink: prices are estimates, and need time

log = logging.getLogger("multispin.supervisor")


class Fleet(Protocol):
    """The keepers, wherever they are. Calls may take a second, and never for ever."""

    @property
    def head(self) -> str:
        """The address of the machine that has the first directory."""

    def keepers(self) -> dict[str, KeeperState]: ...
    def start(self, charge: Charge) -> None: ...
    def drain(self, name: str) -> None: ...
    def end(self, name: str) -> None: ...
    def list_replicas(self, name: str, replicas: ReplicaList) -> None: ...


class Supervising:
    def __init__(self, deployment: Deployment, fleet: Fleet) -> None:
        self._fleet = fleet
        self._supervisor = Supervisor(deployment, fleet.head)
        self._watches = Watches(deployment.cluster)
        self._keepers: dict[str, KeeperState] = {}
        self._shared_at = time.monotonic()

    async def run(self) -> NoReturn:
        while True:
            await self.step()
            await asyncio.sleep(LOOK_S)

    async def step(self) -> None:
        keepers = self._keepers = await asyncio.to_thread(self._fleet.keepers)
        self._watches.watch(keepers.values())
        statuses = self._watches.statuses()
        for order in self._supervisor.orders(time.monotonic(), keepers, statuses):
            log.info("order", extra={"fields": {"order": str(order)}})
            await asyncio.to_thread(self._carry_out, order)
        replicas = self._supervisor.replica_list(keepers)
        for name, keeper in keepers.items():
            if keeper.target == DIRECTORY:
                await asyncio.to_thread(self._fleet.list_replicas, name, replicas)
        if time.monotonic() - self._shared_at >= SHARE_S:
            self._shared_at = time.monotonic()
            for name, shares in self._supervisor.shares(statuses).items():
                await self._watches.send(name, Budgets(shares))

    def overview(self) -> Overview:
        supervisor, statuses = self._supervisor, self._watches.statuses()
        return Overview(
            deployment=supervisor.deployment,
            num_wanted=supervisor.num_wanted,
            rows=[
                row(keeper, statuses.get(name), supervisor.is_current(keeper))
                for name, keeper in sorted(self._keepers.items())
            ],
        )

    async def close(self) -> None:
        await self._watches.close()

    def _carry_out(self, order: Order) -> None:
        match order:
            case Start(charge):
                self._fleet.start(charge)
            case Drain(name):
                self._fleet.drain(name)
            case End(name):
                self._fleet.end(name)
