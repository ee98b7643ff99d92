"""A command's connection to Ray: the driver's process, asked with a limit on the time it takes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from multispin.cell.deployment import Deployment
from multispin.cluster.driver import (
    Apply,
    Connect,
    Done,
    Drain,
    Look,
    Request,
    Response,
    Stop,
)
from multispin.cluster.overview import Overview
from multispin.errors import BadInput, PeerError
from multispin.net.child import Child, ChildDied, Failed

REACH_S = 3.0  # a machine answers within this, or not at all
CONNECT_S = 30.0  # importing Ray takes seconds where others are at work
ANSWER_S = 60.0
LOG = "driver.log"


def check_installed() -> None:
    if importlib.util.find_spec("ray") is None:
        remedy = "is not installed: pip install 'multispin[cluster]'"
        raise BadInput("multispin cluster", "ray", remedy)


class Connection:
    def __init__(self, child: Child[Request, Response], address: str, log: Path) -> None:
        self._child = child
        self._address = address
        self._log = log

    async def ask(self, request: Request, limit_s: float = ANSWER_S) -> Done:
        """Raise BadInput or PeerError as told, and PeerError when no answer comes."""
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._child.ask(request)
        except TimeoutError:
            self._child.kill()
            raise self._lost(f"does not answer within {limit_s:g} s") from None
        except ChildDied:
            raise self._lost(
                "cannot be spoken with; the last words are in " + str(self._log)
            ) from None
        if isinstance(answer, Failed):
            raise answer.error(PeerError)
        return answer

    def _lost(self, how: str) -> PeerError:
        return PeerError(f"Ray at {self._address} {how}", code="unreachable")

    async def apply(self, deployment: Deployment) -> None:
        await self.ask(Apply(deployment))

    async def look(self, cluster: str) -> Overview:
        done = await self.ask(Look(cluster))
        assert done.overview is not None
        return done.overview

    async def drain(self, cluster: str, name: str) -> None:
        await self.ask(Drain(cluster, name))

    async def stop(self, cluster: str, limit_s: float) -> None:
        await self.ask(Stop(cluster, limit_s), limit_s + ANSWER_S)


@contextlib.asynccontextmanager
async def connected(
    address: str, cluster: str, folder: Path, token_path: str
) -> AsyncIterator[Connection]:
    """``token_path``: the file of Ray's token, "" for the one that Ray finds by itself. Raise
    PeerError (code unreachable) within a bounded time where no Ray answers."""
    check_reachable(address)
    arguments = (sys.executable, "-m", "multispin.cluster.driver", str(folder / LOG))
    decoder: msgspec.msgpack.Decoder[Response] = msgspec.msgpack.Decoder(Response)
    child = await Child[Request, Response].start(arguments, decoder)
    try:
        connection = Connection(child, address, folder / LOG)
        await connection.ask(Connect(address, cluster, token_path), CONNECT_S)
        yield connection
    finally:
        child.kill()
        await child.exit_code()


def check_reachable(address: str) -> None:
    """Ray itself tries for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput("cluster.ray", repr(address), 'must be "local" or HOST:PORT of a Ray head')
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise PeerError(f"no Ray answers at {address}: {why}", code="unreachable") from None
