"""A directory and replicas, as people start them; replicas can be killed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    write_replica_list,
)
from tests.api.conftest import get
from tests.cli.conftest import agent

TARGET = ListedTarget("chat")


class Cluster:
    """A directory, and replicas that can be killed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.directory = ""
        self.servers: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def list(self, *names: str) -> None:
        listed = [ListedReplica(name, "chat", self.servers[name]) for name in names]
        write_replica_list(self.file, ReplicaList([TARGET], listed))

    def conditions(self) -> dict[str, str]:
        return {r["name"]: r["condition"] for r in get(self.directory, "/api/cluster")["replicas"]}

    def busy(self) -> str:
        """The replica that writes the only text there is."""
        for name, server in self.servers.items():
            running = self.processes[name].poll() is None
            if running and get(server, "/api/cell")["num_sessions"]:
                return name
        raise AssertionError("nobody writes")


@contextmanager
def cluster(
    folder: Path,
    *names: str,
    of_directory: tuple[str, ...] = (),
    of_replicas: tuple[str, ...] = (),
) -> Iterator[Cluster]:
    """The directory is there first: replicas are told where it is, and listed when they serve."""
    made = Cluster(folder / "replicas.json")
    made.list()
    with ExitStack() as stack:
        own = ("directory", str(made.file), "--port", "0", *of_directory)
        made.processes["directory"], made.directory = stack.enter_context(agent(*own))
        for name in names:
            serve = ("serve", "--target", "ngram", "--port", "0", "--reproducible")
            known = ("--name", name, "--directory", made.directory)
            made.processes[name], made.servers[name] = stack.enter_context(
                agent(*serve, *known, *of_replicas)
            )
        made.list(*names)
        yield made


def wait(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)
