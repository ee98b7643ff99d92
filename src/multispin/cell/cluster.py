"""CLUSTER.toml as `simulate` reads it: targets, their cells, and a fleet (docs/scale.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from multispin.cell.build import build
from multispin.cell.cluster_sections import ClusterFile, FleetSection, TargetSection
from multispin.cell.reader import Reader
from multispin.cell.sections import CellFile
from multispin.cell.tables import read_tables
from multispin.control.problem import Problem
from multispin.errors import BadInput


@dataclass(frozen=True)
class Target:
    section: TargetSection
    file: CellFile
    folder: Path

    def problem(self, num_devices: int, hz_per_device: float) -> Problem:
        """So many devices, mixed as in the file, with so much bandwidth each."""
        shares = np.array([device.count for device in self.file.device], np.float64)
        quota = num_devices * shares / shares.sum()
        counts = np.floor(quota).astype(np.int64)
        rest = np.argsort(counts - quota, kind="stable")[: num_devices - int(counts.sum())]
        counts[rest] += 1
        devices = [
            replace(device, count=count)
            for device, count in zip(self.file.device, counts.tolist(), strict=True)
            if count
        ]
        cell = replace(self.file.cell, bandwidth_hz=num_devices * hz_per_device)
        return build(replace(self.file, device=devices, cell=cell), self.folder).problem


@dataclass(frozen=True)
class Cluster:
    targets: tuple[Target, ...]
    fleet: FleetSection


def load_cluster(path: Path) -> Cluster:
    """Read and check a CLUSTER.toml. Raises BadInput naming file, field, value and remedy."""
    file = read_cluster_file(path)
    if file.fleet is None:
        raise BadInput(f"{path}: fleet", "(missing)", "to simulate, the file needs a [fleet] table")
    return Cluster(tuple(_target(section, path) for section in file.target), file.fleet)


def read_cluster_file(path: Path) -> ClusterFile:
    """All that is said in the file, whoever needs it; targets have names of their own."""
    file = Reader(str(path)).read(read_tables(path, "cluster file"), ClusterFile)
    for field, names in (
        ("target.name", [target.name for target in file.target]),
        ("cell.name", [cell.name for cell in file.cell]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise BadInput(f"{path}: {field}", repr(name), "is used twice; names are unique")
    return file


def _target(section: TargetSection, cluster_file: Path) -> Target:
    if section.cell is None:
        field = f"{cluster_file}: target {section.name!r}.cell"
        raise BadInput(field, "(missing)", "to simulate, a target needs a CELL.toml")
    path = cluster_file.parent / section.cell
    file = Reader(str(path)).read(read_tables(path, "cell file"), CellFile)
    target = Target(section, file, path.parent)
    try:
        target.problem(1, file.cell.bandwidth_hz)
    except BadInput as error:  # what only the whole cell can know
        raise BadInput(f"{path}: {error.field}", error.value, error.remedy) from None
    return target
