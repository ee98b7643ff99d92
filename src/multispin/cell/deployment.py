"""CLUSTER.toml as `cluster up` reads it: what is to run, with every path absolute."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
from msgspec.structs import replace

from multispin.cell.cluster import read_cluster_file
from multispin.cell.cluster_sections import (
    ClusterFile,
    ClusterSection,
    RadioCellSection,
    ServeSection,
    TargetSection,
)
from multispin.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")  # a part of file names, too
_FILES = ("tokens", "cert", "key", "client_ca", "ca", "token_file")
_COST = "cost:"
DIRECTORY = "directory"  # the target of directories


class Deployment(msgspec.Struct, frozen=True):
    cluster: ClusterSection
    targets: list[TargetSection]
    cells: list[RadioCellSection] = msgspec.field(default_factory=list)

    def target(self, name: str) -> TargetSection | None:
        return next((target for target in self.targets if target.name == name), None)


def load_deployment(path: Path) -> Deployment:
    """Read and check a CLUSTER.toml. Raises BadInput naming file, field, value and remedy."""
    file = read_cluster_file(path)
    folder = path.absolute().parent
    try:
        return _deployment(file, folder)
    except BadInput as error:
        raise BadInput(f"{path}: {error.field}", error.value, error.remedy) from None


def _deployment(file: ClusterFile, folder: Path) -> Deployment:
    section = file.cluster
    if section is None:
        raise BadInput("cluster", "(missing)", "to come up, the file needs a [cluster] table")
    for field, name in (
        ("cluster.name", section.name),
        *((f"target {target.name!r}.name", target.name) for target in file.target),
    ):
        if not _NAME.fullmatch(name):
            remedy = "must be 1 to 48 letters, digits, dots, dashes or underscores"
            raise BadInput(field, repr(name), remedy)
    targets = [_target(target, folder) for target in file.target]
    _check_ports(section, targets)
    _check_protection(section)
    _check_cells(file, targets)
    paths = {name: _absolute(folder, getattr(section, name)) for name in _FILES}
    return Deployment(replace(section, **paths), targets, file.cell)


def _target(target: TargetSection, folder: Path) -> TargetSection:
    if target.model is None:
        field = f"target {target.name!r}.model"
        raise BadInput(field, "(missing)", "to come up, a target needs what `serve --target` takes")
    if target.name == DIRECTORY:
        raise BadInput(
            "target.name", repr(DIRECTORY), "is what directories are called; take another"
        )
    model = target.model
    if model.startswith(_COST):
        model = f"{_COST}{_absolute(folder, model.removeprefix(_COST))}"
    elif model.endswith(".gguf") and not model.startswith("hf:"):
        model = _absolute(folder, model) or model
    serve: ServeSection = replace(target.serve, replay=_absolute(folder, target.serve.replay))
    return replace(target, model=model, serve=serve)


def _absolute(folder: Path, path: str | None) -> str | None:
    """A path of the file is meant from the file's folder."""
    return path and os.path.normpath(folder / Path(path).expanduser())


def _check_ports(section: ClusterSection, targets: list[TargetSection]) -> None:
    """Replicas that all listen on loopback are on one machine, and a port is one replica's."""
    first, last = section.ports
    most = sum(target.most_replicas for target in targets)
    if section.is_local and last - first + 1 < most:
        remedy = f"is too small for {most} replicas on one machine: it has {last - first + 1} ports"
        raise BadInput("cluster.ports", list(section.ports), remedy)


def _check_protection(section: ClusterSection) -> None:
    """As `serve` asks for it."""
    if not section.is_local and not section.insecure and not (section.tokens and section.cert):
        raise BadInput(
            "cluster.host",
            section.host,
            "off loopback anybody could read or use it without TLS (cert, key) and access tokens "
            "(tokens): give them, or write insecure = true if the network is yours alone",
        )


def _check_cells(file: ClusterFile, targets: list[TargetSection]) -> None:
    if len({cell.unit for cell in file.cell}) > 1:
        remedy = "all cells need the same: uplink_bits_per_s or bandwidth_hz"
        raise BadInput("cell", "(mixed)", remedy)
    if file.cell and not any(target.serve.policy for target in targets):
        remedy = 'needs a target with [target.serve] policy = "heterogeneous" that shares it out'
        raise BadInput("cell", "(given)", remedy)
