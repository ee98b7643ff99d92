"""The files of a cluster on one machine: what is kept here, what it says, and who may change it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import filelock
import msgspec
from platformdirs import user_state_path

from multispin.cluster.process import Process
from multispin.errors import BadInput
from multispin.files import write_whole

S = TypeVar("S", bound=msgspec.Struct)
KEPT, LIST = ".kept.json", ".replicas.json"  # behind the name of who is kept
_ENDS = "down"


class Kept(msgspec.Struct, frozen=True):
    """A child process of a keeper. ``server`` is empty until it serves."""

    name: str
    target: str
    digest: str  # of the charge that it was started for
    process: Process
    port: int
    server: str = ""
    num_restarts: int = 0
    is_draining: bool = False


def folder_of(cluster: str) -> Path:
    return user_state_path("multispin") / "clusters" / cluster


def clusters_here() -> list[str]:
    """Names of clusters that have a folder on this machine."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in folder_of("").iterdir() if entry.is_dir())
    return []


def make_private(folder: Path) -> None:
    """Make the folder; raise BadInput if that cannot be, or others may look into it."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        folder.chmod(0o700)
    except OSError as error:
        remedy = f"cannot be written ({error.strerror}); XDG_STATE_HOME names another place"
        raise BadInput("the cluster's folder", folder, remedy) from None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One at a time on this machine changes a cluster. Raise BadInput at once for the second."""
    make_private(folder)
    lock = filelock.FileLock(folder / "changing.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        remedy = "another `multispin cluster` command is changing it: wait for its end"
        raise BadInput("cluster", folder.name, remedy) from None
    try:
        yield
    finally:
        lock.release()


def write(path: Path, state: msgspec.Struct) -> None:
    """Replace the file; nobody sees half of it."""
    write_whole(path, msgspec.json.encode(state))


def read(path: Path, kind: type[S]) -> S | None:
    """None for a file that is not there, or none of this version's."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def kept_in(folder: Path) -> list[Kept]:
    """What keepers have noted here, alive or not."""
    found = (read(path, Kept) for path in sorted(folder.glob(f"*{KEPT}")))
    return [kept for kept in found if kept is not None]


def end(folder: Path) -> None:
    """From now on keepers start nobody here, though no Ray may be there to tell them."""
    (folder / _ENDS).touch()


def begin(folder: Path) -> None:
    (folder / _ENDS).unlink(missing_ok=True)


def is_ended(folder: Path) -> bool:
    return not folder.exists() or (folder / _ENDS).exists()


def forget(folder: Path, name: str) -> None:
    """Its child has ended for good; what it said last stays, for who wonders."""
    for ending in (KEPT, LIST, ".out"):
        (folder / f"{name}{ending}").unlink(missing_ok=True)
