"""The replicas that a file lists, watched: what they say goes to the directory."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from multispin.cell.replica_list import ListedReplica, ReplicaList, read_replica_list
from multispin.errors import BadInput, PeerError
from multispin.net.address import Address
from multispin.net.directory import Directory
from multispin.net.watching import ReplicaWatch
from multispin.wire.replica import Document, Status

log = logging.getLogger("multispin.watching")

LOOK_S = 0.5  # between two looks at the file
ANSWER_S = 1.0  # a replica gets so long to send a document


class Watches:
    """``address_of`` makes one of what is listed. Raise BadInput if the file cannot be used at the
    start; later, the old list stays in force."""

    def __init__(
        self, directory: Directory, file: Path, address_of: Callable[[str], Address]
    ) -> None:
        self.num_unanswered = 0  # documents that did not come in time
        self._directory = directory
        self._file = file
        self._address_of = address_of
        self._addresses: dict[str, Address] = {}
        self._watches: dict[ListedReplica, ReplicaWatch] = {}
        self._stamp = self._look()
        self._listed, self._addresses = self._read()
        directory.use(self._listed)

    async def run(self) -> None:
        """Watch for ever."""
        try:
            await self._watch_listed()
            while True:
                await asyncio.sleep(LOOK_S)
                await self.refresh()
        finally:
            await self._close(list(self._watches))

    async def refresh(self) -> None:
        """Read the file if it has changed."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._listed, self._addresses = self._read()
        except BadInput as error:
            log.error("replicas_kept: %s", error)
            return
        fields = {"num_replicas": len(self._listed.replicas)}
        log.info("replicas_read", extra={"fields": fields})
        self._directory.use(self._listed)
        await self._watch_listed()

    def address(self, server: str) -> Address:
        """Of a listed replica. Raise PeerError if it has been struck off meanwhile."""
        if server not in self._addresses:
            raise PeerError(f"{server} is no longer listed", code="unreachable")
        return self._addresses[server]

    async def ask(self, document: Document) -> dict[str, bytes]:
        """What each replica answers, by name; those that do not in time are left out."""
        connected = {
            one.name: watch
            for one, watch in self._watches.items()
            if watch.status and watch.status.welcome  # and not busy with loading its model
        }
        asking = (self._ask(watch, document) for watch in connected.values())
        answers = dict(zip(connected, await asyncio.gather(*asking), strict=True))
        found = {name: answer for name, answer in answers.items() if answer is not None}
        self.num_unanswered += len(answers) - len(found)
        return found

    async def _ask(self, watch: ReplicaWatch, document: Document) -> bytes | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await watch.ask(document)
        except (PeerError, TimeoutError):
            return None

    async def _watch_listed(self) -> None:
        """A watch for each that is listed, and for no other."""
        for replica in self._listed.replicas:
            if replica not in self._watches:
                told = functools.partial(self._tell, replica)
                self._watches[replica] = ReplicaWatch(self._addresses[replica.server], told)
        listed = set(self._listed.replicas)
        await self._close([one for one in self._watches if one not in listed])

    async def _close(self, replicas: list[ListedReplica]) -> None:
        await asyncio.gather(*(self._watches.pop(one).close() for one in replicas))

    def _tell(self, replica: ListedReplica, status: Status | None) -> None:
        if replica in self._watches:  # and not struck off the list
            self._directory.news(replica.name, status)

    def _read(self) -> tuple[ReplicaList, dict[str, Address]]:
        listed = read_replica_list(self._file)
        servers = [replica.server for replica in listed.replicas]
        known = self._addresses
        return listed, {at: known.get(at) or self._address_of(at) for at in servers}

    def _look(self) -> tuple[int, ...] | None:
        """What changes when the file does."""
        try:
            stat = os.stat(self._file)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size
