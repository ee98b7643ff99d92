"""A link to every replica that is known to serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from multispin.cell.cluster_sections import ClusterSection
from multispin.cell.deployment import DIRECTORY
from multispin.cluster.keeper import KeeperState
from multispin.errors import BadInput
from multispin.net.address import Address, parse_address
from multispin.net.watching import ReplicaWatch
from multispin.wire.replica import Budgets, Status

log = logging.getLogger("multispin.supervisor")


class Watches:
    def __init__(self, section: ClusterSection) -> None:
        self._section = section
        self._watches: dict[tuple[str, str], ReplicaWatch] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def watch(self, keepers: Iterable[KeeperState]) -> None:
        """The replicas of these, and no others."""
        wanted = {(k.name, k.server) for k in keepers if k.server and k.target != DIRECTORY}
        for gone in self._watches.keys() - wanted:
            task = asyncio.create_task(self._watches.pop(gone).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        for name, server in sorted(wanted - self._watches.keys()):
            try:
                address = _address(server, self._section)
            except BadInput as error:  # a token file that is gone, say: next time it may be there
                log.error("cannot watch %s: %s", name, error)
            else:
                self._watches[name, server] = ReplicaWatch(address, _ignore)

    def statuses(self) -> dict[str, Status]:
        watches = self._watches.items()
        return {name: watch.status for (name, _), watch in watches if watch.status is not None}

    async def send(self, name: str, budgets: Budgets) -> None:
        for (other, _), watch in self._watches.items():
            if other == name:
                await watch.send(budgets)

    async def close(self) -> None:
        self.watch([])
        await asyncio.gather(*self._closing)


def _address(server: str, section: ClusterSection) -> Address:
    """Where devices have to show a certificate, so do we: the cluster's own."""
    is_secure = server.startswith("https://")
    shows = is_secure and section.client_ca is not None
    return parse_address(
        server,
        "replicas.server",
        token_file=section.token_file or "",
        ca=section.ca if is_secure else None,
        cert=section.cert if shows else None,
        key=section.key if shows else None,
    )


def _ignore(status: Status | None) -> None:
    """It is looked at when it is needed."""
