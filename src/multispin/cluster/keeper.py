"""A keeper: starts one replica or directory as a child, watches it, restarts it, drains it.

The child is in a session of its own and outlives its keeper, however that ends. The next keeper of
the same name on the machine finds it by its file: one that was started for the same charge is taken
over as it is, another is drained first. Two keepers of one name, as after the loss of a Ray whose
processes need a minute to notice, do not keep side by side: a lock has them take turns.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import filelock
import msgspec
from msgspec.structs import replace

from multispin.cell.replica_list import ReplicaList, write_replica_list
from multispin.cluster import folder as files
from multispin.cluster.charge import Charge
from multispin.cluster.folder import Kept
from multispin.cluster.process import environment, start
from multispin.errors import BadInput

Condition: TypeAlias = Literal["waiting", "starting", "up", "failed", "draining", "ended"]

FIRST_DELAY_S = 0.2  # until a child that died is started again
MOST_DELAY_S = 60.0
SETTLED_S = 10.0  # a child that served so long is none that cannot start
GRACE_S = 20.0  # beyond the time in which it should have drained, before it is killed
LAST_BYTES = 8192  # of what it said, looked through for the reason
MOST_LOG_BYTES = 1 << 20


class KeeperState(msgspec.Struct, frozen=True):
    """``server`` is where it serves, or did last, empty before the first time; ``why`` the last
    trouble, empty where there is none. "waiting" is for whose keeper Ray has not placed yet."""

    name: str
    target: str
    condition: Condition
    digest: str = ""
    server: str = ""
    node: str = ""
    pid: int = 0
    num_restarts: int = 0
    num_failed: int = 0  # starts in a row
    why: str = ""


class Keeper:
    """`step` does what is due and is called again and again; everything may be called from any
    thread. ``node`` is this machine's address, for who is elsewhere."""

    def __init__(self, charge: Charge, folder: Path, node: str, clock: Callable[[], float]) -> None:
        self.charge = charge
        self._folder = folder
        self._node = node
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: Kept | None = None
        self._why = self._server = ""
        self._port = charge.port
        self._up_since: float | None = None
        self._num_restarts = self._num_failed = 0
        self._retry_at = self._kill_at = -float("inf")
        self._log_begin = 0  # where this child's words begin
        self._is_draining = self._has_ended = False
        self._turn = filelock.FileLock(folder / f"{charge.name}.lock", thread_local=False)

    def state(self) -> KeeperState:
        with self._lock:
            kept = self._kept
            return KeeperState(
                name=self.charge.name,
                target=self.charge.target,
                condition=self._condition(),
                digest=self.charge.digest,
                server=self._server,
                node=self._node,
                pid=kept.process.pid if kept else 0,
                num_restarts=self._num_restarts,
                num_failed=self._num_failed,
                why=self._why,
            )

    def step(self) -> None:
        with self._lock:
            try:
                self._step()
            except (OSError, BadInput) as error:  # a full disk, no port
                self._fail(str(error))

    def drain(self) -> None:
        """The child is told to stop, and killed if it takes too long; then this keeper is done."""
        with self._lock:
            if not self._is_draining:
                self._is_draining = True
                self._end_child()

    def list_replicas(self, replicas: ReplicaList) -> None:
        """For a directory: what it is to know."""
        if files.read(self._list_path, ReplicaList) != replicas:
            files.make_private(self._folder)
            write_replica_list(self._list_path, replicas)

    # --- what is due ---------------------------------------------------------------------------

    def _step(self) -> None:
        if not self._has_turn():
            self._why = "another keeper of this name has not ended yet"
        elif (kept := self._kept) is None:
            self._start_if_due()
        elif not kept.process.lives:
            self._bury(kept)
        elif self._is_draining or not self._is_mine(kept):
            if self._clock() >= self._kill_at:
                kept.process.end(with_force=True)
        elif not kept.server and "\n" in self._path(".out").read_text():  # its address
            self._server = self.charge.server(self._node, kept.port)
            self._note(replace(kept, server=self._server))
            self._up_since, self._why = self._clock(), ""

    def _has_turn(self) -> bool:
        if self._turn.is_locked:
            return True
        files.make_private(self._folder)
        with contextlib.suppress(filelock.Timeout):
            self._turn.acquire(timeout=0)
            self._why = ""
            self._adopt()
            return True
        return False

    def _condition(self) -> Condition:
        if self._has_ended:
            return "ended"
        if self._is_draining:
            return "draining"
        if self._kept is not None and self._kept.server and self._is_mine(self._kept):
            return "up"
        return "failed" if self._num_failed else "starting"

    def _is_mine(self, kept: Kept) -> bool:
        return kept.digest == self.charge.digest

    def _adopt(self) -> None:
        kept = files.read(self._path(files.KEPT), Kept)
        if kept is None or not kept.process.lives:
            return
        self._kept, self._port, self._num_restarts = kept, kept.port, kept.num_restarts
        self._is_draining, self._server = self._is_draining or kept.is_draining, kept.server
        self._up_since = self._clock() if kept.server else None
        if self._is_draining or not self._is_mine(kept):
            self._why = "an older one of this name is being drained"
            self._end_child()

    def _start_if_due(self) -> None:
        if self._is_draining:
            self._has_ended = True
            files.forget(self._folder, self.charge.name)
        elif files.is_ended(self._folder):
            self._why = "the cluster has been ended on this machine"
        elif self.charge.is_directory and not self._list_path.exists():
            self._why = "the supervisor has not told which replicas there are"
        elif self._clock() >= self._retry_at:
            self._start()

    def _start(self) -> None:
        self._port = _free_port(self.charge, self._port)
        command = [sys.executable, "-m", "multispin", *self.charge.arguments]
        command += ["--port", str(self._port)]
        if self.charge.is_directory:
            command.append(str(self._list_path))
        log = self._path(".log")
        if log.exists() and log.stat().st_size > MOST_LOG_BYTES:
            log.unlink()
        self._log_begin = log.stat().st_size if log.exists() else 0
        process = start(command, self._path(".out"), log, environment())
        charge = self.charge
        self._note(Kept(charge.name, charge.target, charge.digest, process, self._port))

    def _note(self, kept: Kept) -> None:
        self._kept = replace(kept, num_restarts=self._num_restarts, is_draining=self._is_draining)
        files.write(self._path(files.KEPT), self._kept)

    def _end_child(self) -> None:
        self._kill_at = self._clock() + self.charge.drain_s + GRACE_S
        if self._kept is not None:
            self._kept.process.end()
            self._note(self._kept)

    def _bury(self, kept: Kept) -> None:
        """The child has ended: of itself, or because it was told to."""
        self._kept = None
        if self._is_draining or not self._is_mine(kept):
            self._why = ""
            return
        if self._up_since is not None:
            self._num_restarts += 1
            if self._clock() - self._up_since >= SETTLED_S:
                self._num_failed = 0
        self._fail(self._last_words())

    def _fail(self, why: str) -> None:
        """Again, ever later."""
        self._up_since = None
        delay_s = FIRST_DELAY_S * 4.0 ** min(self._num_failed, 10)
        self._retry_at = self._clock() + min(delay_s, MOST_DELAY_S)
        self._num_failed += 1
        self._why = why

    def _last_words(self) -> str:
        """What it gave as the reason, or said last."""
        with self._path(".log").open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_begin, end - LAST_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1].removeprefix("error: ")
        return f"it ended after saying: {lines[-1]}" if lines else "it ended without a word"

    def _path(self, ending: str) -> Path:
        return self._folder / f"{self.charge.name}{ending}"

    @property
    def _list_path(self) -> Path:
        return self._path(files.LIST)


def _free_port(charge: Charge, preferred: int) -> int:
    """Of the charge's range; raise BadInput if there is none."""
    first, last = charge.ports
    num = last - first + 1
    for port in (first + (preferred - first + step) % num for step in range(num)):
        if _is_free(charge.host, port):
            return port
    taken = f"port {first} is" if num == 1 else f"all ports from {first} to {last} are"
    raise BadInput("ports", list(charge.ports), f"{taken} taken on {charge.host}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen(1)
        except OSError:
            return False
    return True
