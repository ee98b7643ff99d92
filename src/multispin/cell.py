"""CELL.toml, the description of one cell, into the ``Problem`` that control/ solves.

Format: contract.md (docs/control.md lists every key). Every error is a BadInput naming the file,
the field, the value and what is allowed. ``[device.energy]`` and ``[device.acceptance_model]`` are
reserved for the simulator and refused until it reads them.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec
import numpy as np

from multispin.control.problem import Objective, Problem, Uplink
from multispin.errors import BadInput
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency, MixedRadio
from multispin.radio.units import THERMAL_NOISE_DBM_PER_HZ, db_to_linear

_MAX_DEVICES = 1_000_000
_MAX_LENGTH = 100_000
ObjectiveKind = Literal["sum", "proportional"]
S = TypeVar("S", bound=msgspec.Struct)


class CellSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bandwidth_hz: float


class ServerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verify_fixed_s: float
    verify_per_device_s: float = 0.0
    verify_per_token_s: float = 0.0
    round_trip_s: float = 0.0
    min_draft_length: int = 0
    max_draft_length: int = 25


class ObjectiveSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str = "sum"
    min_goodput_tokens_per_s: float = 0.0


class ChannelSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rate that is concave in bandwidth: B log2(1 + S/(N0 B))."""

    received_power_dbm: float
    noise_density_dbm_per_hz: float = THERMAL_NOISE_DBM_PER_HZ


class DeviceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    draft_s_per_token: float
    acceptance: float
    bits_per_token: float
    count: int = 1
    bits_per_draft: float = 0.0
    spectral_efficiency: float | None = None
    channel: ChannelSection | None = None


class CellFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cell: CellSection
    server: ServerSection
    device: list[DeviceSection]
    objective: ObjectiveSection = ObjectiveSection()


_TABLES: dict[str, type[msgspec.Struct]] = {
    "cell": CellSection,
    "server": ServerSection,
    "objective": ObjectiveSection,
}
_RESERVED = ("energy", "acceptance_model")


@dataclass(frozen=True, eq=False)
class Cell:
    """A named cell: ``names[k]`` belongs to device k of ``problem``."""

    names: tuple[str, ...]
    problem: Problem


def load_cell(path: Path) -> Cell:
    """Read and check a CELL.toml."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BadInput("cell file", path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput("cell file", path, f"is not UTF-8 text: {error.reason}") from None
    return parse_cell(text, source=str(path))


def parse_cell(text: str, source: str = "CELL.toml") -> Cell:
    """The cell that ``text`` (TOML) describes; ``source`` is how errors call it."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(source, "(not TOML)", str(error)) from None
    file = _Reader(source).read(tables)
    devices = [device for device in file.device for _ in range(device.count)]
    names = tuple(name for device in file.device for name in _names(device))
    _reject_duplicates(source, names)

    def column(field: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([getattr(device, field) for device in devices], dtype=np.float64)

    try:
        problem = Problem(
            draft_s_per_token=column("draft_s_per_token"),
            acceptance=column("acceptance"),
            bits_per_token=column("bits_per_token"),
            bits_per_draft=column("bits_per_draft"),
            uplink=_uplink(devices),
            bandwidth_hz=file.cell.bandwidth_hz,
            objective=Objective(
                kind="proportional" if file.objective.kind == "proportional" else "sum",
                min_goodput_tokens_per_s=file.objective.min_goodput_tokens_per_s,
            ),
            **msgspec.structs.asdict(file.server),
        )
    except BadInput as error:  # what only the whole cell can know
        raise BadInput(f"{source}: {error.field}", error.value, error.remedy) from None
    return Cell(names, problem)


class _Reader:
    """Checks tables field by field, so that every message carries file and path."""

    def __init__(self, source: str) -> None:
        self.source = source

    def read(self, tables: dict[str, Any]) -> CellFile:
        self._keys("", tables, ["cell", "server", "objective", "device"])
        sections: dict[str, Any] = {}
        for name, kind in _TABLES.items():
            if name in tables or name != "objective":
                sections[name] = self._section(name, tables.get(name), kind)
        devices = tables.get("device", [])
        if not isinstance(devices, list) or not devices:
            raise self._bad("device", devices, "a cell needs at least one [[device]] table")
        sections["device"] = [self._device(i, table) for i, table in enumerate(devices)]
        file = CellFile(**sections)
        self._check_numbers(file)
        return file

    def _device(self, index: int, table: Any) -> DeviceSection:
        path = f"device[{index}]"
        if isinstance(table, dict):
            if isinstance(table.get("name"), str):
                path = f"{path} {table['name']!r}"
            for reserved in _RESERVED:
                if reserved in table:
                    raise self._bad(
                        f"{path}.{reserved}", "{...}", "this table is not supported yet; remove it"
                    )
            if isinstance(table.get("channel"), dict):
                channel = self._section(f"{path}.channel", table["channel"], ChannelSection)
                table = {**table, "channel": msgspec.structs.asdict(channel)}
        device = self._section(path, table, DeviceSection)
        if (device.spectral_efficiency is None) == (device.channel is None):
            raise self._bad(
                f"{path}.spectral_efficiency",
                "(missing)" if device.channel is None else device.spectral_efficiency,
                "give either spectral_efficiency (bit/s/Hz) or a [device.channel] table, not both",
            )
        self._range(f"{path}.draft_s_per_token", device.draft_s_per_token, 0.0)
        self._range(f"{path}.acceptance", device.acceptance, 0.0, 1.0)
        self._range(f"{path}.bits_per_token", device.bits_per_token, 0.0)
        self._range(f"{path}.bits_per_draft", device.bits_per_draft, 0.0)
        self._range(f"{path}.count", device.count, 1, _MAX_DEVICES)
        if device.spectral_efficiency is not None:
            self._positive(f"{path}.spectral_efficiency", device.spectral_efficiency)
        if device.channel is not None:
            power, noise = (
                device.channel.received_power_dbm,
                device.channel.noise_density_dbm_per_hz,
            )
            self._range(f"{path}.channel.received_power_dbm", power, -300.0, 100.0)
            self._range(f"{path}.channel.noise_density_dbm_per_hz", noise, -300.0, 100.0)
        return device

    def _check_numbers(self, file: CellFile) -> None:
        self._positive("cell.bandwidth_hz", file.cell.bandwidth_hz)
        server = file.server
        for name in (
            "verify_fixed_s",
            "verify_per_device_s",
            "verify_per_token_s",
            "round_trip_s",
        ):
            self._range(f"server.{name}", getattr(server, name), 0.0)
        self._range("server.min_draft_length", server.min_draft_length, 0, _MAX_LENGTH)
        self._range(
            "server.max_draft_length", server.max_draft_length, server.min_draft_length, _MAX_LENGTH
        )
        if file.objective.kind not in get_args(ObjectiveKind):
            raise self._bad(
                "objective.kind", file.objective.kind, 'must be "sum" or "proportional"'
            )
        self._range(
            "objective.min_goodput_tokens_per_s", file.objective.min_goodput_tokens_per_s, 0.0
        )

    def _section(self, path: str, table: Any, kind: type[S]) -> S:
        if table is None:
            raise self._bad(path, "(missing)", f"the file needs a [{path}] table")
        if not isinstance(table, dict):
            raise self._bad(path, table, "must be a table")
        fields = msgspec.structs.fields(kind)
        self._keys(f"{path}.", table, [field.name for field in fields])
        for field in fields:
            if field.required and field.name not in table:
                raise self._bad(f"{path}.{field.name}", "(missing)", "is required")
        for name, value in table.items():
            if isinstance(value, bool):  # TOML's true is no number
                raise self._bad(f"{path}.{name}", value, "must not be true or false")
        try:
            return msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            reason, _, where = str(error).partition(" - at `$.")
            name = where.rstrip("`").split(".")[0]
            raise self._bad(f"{path}.{name}", repr(table.get(name)), reason) from None

    def _keys(self, prefix: str, table: dict[str, Any], known: list[str]) -> None:
        for key, value in table.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}? " if near else ""
                shown = "{...}" if isinstance(value, dict | list) else repr(value)
                raise self._bad(
                    f"{prefix}{key}", shown, f"unknown key; {hint}known are {', '.join(known)}"
                )

    def _range(self, path: str, value: float, low: float, high: float = math.inf) -> None:
        if not (math.isfinite(value) and low <= value <= high):
            allowed = f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise self._bad(path, value, f"must be {allowed}")

    def _positive(self, path: str, value: float) -> None:
        if not (math.isfinite(value) and value > 0):
            raise self._bad(path, value, "must be above 0")

    def _bad(self, path: str, value: object, remedy: str) -> BadInput:
        return BadInput(f"{self.source}: {path}", value, remedy)


def _names(device: DeviceSection) -> list[str]:
    if device.count == 1:
        return [device.name]
    return [f"{device.name}-{i}" for i in range(1, device.count + 1)]


def _reject_duplicates(source: str, names: tuple[str, ...]) -> None:
    if len(names) > _MAX_DEVICES:
        raise BadInput(f"{source}: device", len(names), f"must be at most {_MAX_DEVICES} in all")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{source}: device.name", repr(name), "is used twice; names are unique")
        seen.add(name)


def _uplink(devices: list[DeviceSection]) -> Uplink:
    is_noisy = np.array([device.channel is not None for device in devices])
    constant = ConstantEfficiency(
        np.array([device.spectral_efficiency or 1.0 for device in devices])
    )
    if not is_noisy.any():
        return constant
    # milliwatts cancel: the difference of two levels in dBm is their ratio, S/N0, in dB
    excess_db = [
        device.channel.received_power_dbm - device.channel.noise_density_dbm_per_hz
        if device.channel
        else 0.0
        for device in devices
    ]
    noisy = BandwidthNoise(db_to_linear(excess_db))
    return noisy if is_noisy.all() else MixedRadio(is_noisy, constant, noisy)
