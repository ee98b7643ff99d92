"""REPLICAS.json: which replicas a directory watches, and what is known of their targets.

Written by hand, or by who keeps a directory (docs/cluster.md). It is replaced as a whole: a reader
sees the list before or the list after.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from multispin.errors import BadInput
from multispin.files import write_whole

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}\Z")]
NonNegative = Annotated[float, msgspec.Meta(ge=0, lt=1e18)]


class ListedTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model under the name by which sessions ask for it, and what its use costs on one replica;
    0 where nobody knows."""

    name: Name
    quality: int = 0
    watts: NonNegative = 0.0
    cost_per_hour: NonNegative = 0.0


class ListedReplica(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``server``: HOST:PORT or https://HOST:PORT, as devices are sent there."""

    name: Name
    target: Name
    server: str


class ReplicaList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first target is that of sessions which ask for nothing."""

    targets: Annotated[list[ListedTarget], msgspec.Meta(min_length=1)]
    replicas: list[ListedReplica]


def read_replica_list(path: Path, field: str = "FILE") -> ReplicaList:
    """Raise BadInput naming the file, the field, the value and the remedy."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=ReplicaList)
    except OSError as error:
        raise BadInput(field, path, f"cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(field, path, f"is no list of replicas: {error}") from None
    _check_unique(f"{path}: targets.name", [target.name for target in found.targets])
    _check_unique(f"{path}: replicas.name", [replica.name for replica in found.replicas])
    _check_unique(f"{path}: replicas.server", [replica.server for replica in found.replicas])
    targets = {target.name for target in found.targets}
    for index, replica in enumerate(found.replicas):
        if replica.target not in targets:
            raise BadInput(
                f"{path}: replicas[{index}].target",
                replica.target,
                f"is none of the targets: {', '.join(sorted(targets))}",
            )
    return found


def write_replica_list(path: Path, replicas: ReplicaList) -> None:
    """Replace the file; a reader never sees half of it."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(replicas)) + b"\n")


def _check_unique(field: str, values: Iterable[str]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise BadInput(field, value, "is used twice: each is one of its own")
        seen.add(value)
