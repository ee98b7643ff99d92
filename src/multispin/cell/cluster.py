"""CLUSTER.toml: targets, their replicas, and a fleet of devices to simulate (docs/scale.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec.structs import replace

from multispin.cell.build import build
from multispin.cell.limits import Limits, NonNegative, Positive
from multispin.cell.reader import Reader
from multispin.cell.sections import CellFile, Section
from multispin.cell.tables import read_tables
from multispin.control.problem import Problem
from multispin.errors import BadInput

HOURS = 24


class TargetSection(Section, frozen=True):
    """A model that replicas serve; ``cell`` is a CELL.toml with its passes and its devices."""

    name: str
    cell: str
    max_sessions: Annotated[int, Limits(1, 4096)]  # of a replica: what its KV memory holds
    min_replicas: Annotated[int, Limits(1, 100_000)] = 1
    max_replicas: Annotated[int, Limits(1, 100_000)] = 1
    start_s: NonNegative = 30.0  # until a new or restarted replica serves
    prefill_s_per_token: NonNegative = 0.0  # of a text that is read anew
    share: Positive = 1.0  # of the texts, beside the other targets'

    def check(self) -> None:
        if self.max_replicas < self.min_replicas:
            remedy = f"must be at least min_replicas, {self.min_replicas}"
            raise BadInput("max_replicas", self.max_replicas, remedy)


class FleetSection(Section, frozen=True):
    """Who asks: rates are per device and hour, lengths are means."""

    devices: Annotated[int, Limits(1, 100_000_000)]
    radio_cells: Annotated[int, Limits(1, 1_000_000)]
    texts_per_hour: Positive
    prompt_tokens: Annotated[int, Limits(1, 1_000_000)] = 200
    answer_tokens: Annotated[int, Limits(1, 1_000_000)] = 200
    moves_per_hour: NonNegative = 0.0  # of a device, into another radio cell
    failures_per_hour: NonNegative = 0.0  # of a replica
    hours: Annotated[float, Limits(0.0, 168.0, is_open=True)] = 1.0
    start_hour: Annotated[float, Limits(0.0, HOURS)] = 0.0
    load_by_hour: list[float] | None = None  # of the day, as a factor of texts_per_hour

    def check(self) -> None:
        load = self.load_by_hour
        if load is not None and (
            len(load) != HOURS or not (np.isfinite(load).all() and min(load) >= 0)
        ):
            raise BadInput("load_by_hour", load, f"needs {HOURS} numbers, 0 or more")

    def load(self, hour: float) -> float:
        """The factor at an hour of the day, in a line between the full hours."""
        if self.load_by_hour is None:
            return 1.0
        around = [*self.load_by_hour, self.load_by_hour[0]]
        return float(np.interp(hour % HOURS, np.arange(HOURS + 1), around))


class ClusterFile(Section, frozen=True):
    target: list[TargetSection]
    fleet: FleetSection


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
    file = Reader(str(path)).read(read_tables(path, "cluster file"), ClusterFile)
    names = [section.name for section in file.target]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{path}: target.name", repr(name), "is used twice; names are unique")
    return Cluster(tuple(_target(section, path.parent) for section in file.target), file.fleet)


def _target(section: TargetSection, folder: Path) -> Target:
    path = folder / section.cell
    file = Reader(str(path)).read(read_tables(path, "cell file"), CellFile)
    target = Target(section, file, path.parent)
    try:
        target.problem(1, file.cell.bandwidth_hz)
    except BadInput as error:  # what only the whole cell can know
        raise BadInput(f"{path}: {error.field}", error.value, error.remedy) from None
    return target
