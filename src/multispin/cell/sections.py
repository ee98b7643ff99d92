"""The tables of CELL.toml: keys, defaults, ranges, and which keys go together (docs/cell.md)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from multispin.cell.limits import (
    Decibels,
    Limits,
    NonNegative,
    Positive,
    Share,
    Together,
    equals,
    given,
)
from multispin.control.problem import Outage
from multispin.errors import BadInput
from multispin.radio.pathloss import SCENARIOS, Geometry, ScenarioName
from multispin.radio.units import THERMAL_NOISE_DBM_PER_HZ
from multispin.wire.payload import Payload, payload

MAX_DEVICES = 1_000_000
MAX_LENGTH = 100_000
Csi: TypeAlias = Literal["statistical", "instantaneous"]
DraftLength: TypeAlias = Annotated[int, Limits(0, MAX_LENGTH)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: ClassVar[tuple[Together, ...]] = ()

    def check(self) -> None:
        """Raise BadInput naming a key, for what neither a range nor a rule can say."""


class CellSection(Section, frozen=True):
    bandwidth_hz: Positive
    csi: Csi = "statistical"


class ServerEnergySection(Section, frozen=True):
    busy_w: NonNegative = 0.0
    idle_w: NonNegative = 0.0


class CurveSection(Section, frozen=True):
    """Measured passes in the place of the line: seconds of a pass of so many rows, in all."""

    rows: list[int]
    seconds: list[float]

    def check(self) -> None:
        if len(self.rows) != len(self.seconds) or not self.rows:
            raise BadInput("rows", self.rows, "needs as many seconds, one at least")
        if (np.diff(self.rows, prepend=0) <= 0).any():
            raise BadInput("rows", self.rows, "must rise, from 1 or more")
        if not (np.isfinite(self.seconds).all() and min(self.seconds) > 0):
            raise BadInput("seconds", self.seconds, "must be above 0")
        if self.seconds[-2:] != sorted(self.seconds[-2:]):
            remedy = "must not fall at the end: more rows would take less than no time"
            raise BadInput("seconds", self.seconds, remedy)


class ServerSection(Section, frozen=True):
    verify_fixed_s: NonNegative
    verify_per_device_s: NonNegative = 0.0
    verify_per_token_s: NonNegative = 0.0
    round_trip_s: NonNegative = 0.0
    min_draft_length: DraftLength = 0
    max_draft_length: DraftLength = 25
    energy: ServerEnergySection = ServerEnergySection()
    curve: CurveSection | None = None

    def check(self) -> None:
        if self.max_draft_length < self.min_draft_length:
            remedy = f"must be at least min_draft_length, {self.min_draft_length}"
            raise BadInput("max_draft_length", self.max_draft_length, remedy)


class ObjectiveSection(Section, frozen=True):
    kind: Literal["sum", "proportional"] = "sum"
    min_goodput_tokens_per_s: NonNegative = 0.0
    outage_tokens: Annotated[int, Limits(1, 1_000_000)] | None = None
    outage_deadline_s: Positive | None = None
    max_outage: Share | None = None

    _outage = ("outage_tokens", "outage_deadline_s", "max_outage")
    rules = (Together(given(*_outage), needs=_outage),)

    def check(self) -> None:
        self.outage()

    def outage(self) -> Outage | None:
        """What each device is owed, if anything."""
        if self.outage_tokens is None or self.outage_deadline_s is None or self.max_outage is None:
            return None
        return Outage(self.outage_tokens, self.outage_deadline_s, self.max_outage)


class ChannelSection(Section, frozen=True):
    """One of a given signal-to-noise ratio, a received power, and a model of path loss."""

    snr_db: Decibels | None = None
    received_power_dbm: Decibels | None = None
    model: ScenarioName | None = None
    distance_m: Positive | None = None
    carrier_hz: Annotated[float, Limits(1e6, 1e12)] | None = None
    transmit_power_dbm: Decibels | None = None
    base_station_height_m: Positive | None = None
    device_height_m: Positive | None = None
    los: Literal["line-of-sight", "none", "drawn"] = "drawn"
    shadowing_db: Annotated[float, Limits(0.0, 30.0)] | None = None
    antenna_gain_db: Decibels = 0.0
    noise_figure_db: Annotated[float, Limits(0.0, 50.0)] = 0.0
    noise_density_dbm_per_hz: Decibels = THERMAL_NOISE_DBM_PER_HZ
    fading: Literal["none", "rayleigh", "rician"] = "none"
    rician_k_db: Annotated[float, Limits(-40.0, 60.0)] | None = None
    speed_m_per_s: Annotated[float, Limits(1e-3, 1e3)] | None = None
    coherence_s: Annotated[float, Limits(1e-6, 1e9)] | None = None
    min_rate_bits_per_s: NonNegative = 0.0

    rules = (
        Together(one_of=("snr_db", "received_power_dbm", "model")),
        Together(
            given("model"),
            needs=("distance_m", "transmit_power_dbm"),
            allows=(
                "base_station_height_m",
                "device_height_m",
                "los",
                "shadowing_db",
                "antenna_gain_db",
            ),
        ),
        Together(
            given("received_power_dbm", "model"),
            allows=("noise_figure_db", "noise_density_dbm_per_hz"),
        ),
        Together(given("model", "speed_m_per_s"), needs=("carrier_hz",)),
        Together(equals("fading", "rayleigh", "rician"), one_of=("speed_m_per_s", "coherence_s")),
        Together(equals("fading", "rician"), needs=("rician_k_db",)),
    )

    def check(self) -> None:
        if self.model is not None:
            SCENARIOS[self.model].check(self.geometry(self.model))

    def geometry(self, model: ScenarioName) -> Geometry:
        """Where the model has the device, with its default heights."""
        scenario = SCENARIOS[model]
        base, device = self.base_station_height_m, self.device_height_m
        return Geometry(
            distance_m=np.asarray(self.distance_m or 0.0),
            carrier_hz=np.asarray(self.carrier_hz or 0.0),
            base_station_height_m=np.asarray(base or scenario.base_station_height_m),
            device_height_m=np.asarray(device or scenario.device_height_m),
        )


class AcceptanceModel(Section, frozen=True):
    """How a device's drafts agree with the target; the mean is ``device.acceptance``.

    iid: each token on its own. beta: one probability per prompt, Beta-distributed. markov: token
    by token a chain of two states. replay: as recorded, ``record`` is a file of `multispin record`.
    """

    kind: Literal["iid", "beta", "markov", "replay"] = "iid"
    std: Annotated[float, Limits(0.0, 0.5, is_open=True)] | None = None
    correlation: Annotated[float, Limits(-1.0, 1.0)] | None = None
    record: str | None = None

    rules = (
        Together(equals("kind", "beta"), needs=("std",)),
        Together(equals("kind", "markov"), needs=("correlation",)),
        Together(equals("kind", "replay"), needs=("record",)),
    )

    def check_mean(self, mean: float) -> None:
        """Raise BadInput unless there is such a distribution with this mean."""
        most = math.sqrt(mean * (1.0 - mean))
        if self.std is not None and not self.std < most:
            remedy = f"must be below {most:.4g} where acceptance is {mean:g}"
            raise BadInput("acceptance_model.std", self.std, remedy)
        least = -min(mean, 1.0 - mean) / max(mean, 1.0 - mean)
        if self.correlation is not None and not least <= self.correlation < 1.0:
            remedy = f"must be from {least:.4g} to below 1 where acceptance is {mean:g}"
            raise BadInput("acceptance_model.correlation", self.correlation, remedy)


class EnergySection(Section, frozen=True):
    draft_w: NonNegative = 0.0
    transmit_w: NonNegative = 0.0
    idle_w: NonNegative = 0.0


class DeviceSection(Section, frozen=True):
    name: str
    draft_s_per_token: NonNegative
    acceptance: Share
    count: Annotated[int, Limits(1, MAX_DEVICES)] = 1
    bits_per_token: NonNegative | None = None
    bits_per_draft: NonNegative = 0.0
    payload: str | None = None
    vocabulary_size: int | None = None
    spectral_efficiency: Positive | None = None
    answer_tokens: Annotated[int, Limits(1, 1_000_000)] = 128
    channel: ChannelSection | None = None
    acceptance_model: AcceptanceModel = AcceptanceModel()
    energy: EnergySection = EnergySection()

    rules = (
        Together(one_of=("spectral_efficiency", "channel")),
        Together(one_of=("bits_per_token", "payload")),
        Together(given("bits_per_token"), allows=("bits_per_draft",)),
        Together(given("payload"), needs=("vocabulary_size",)),
    )

    def check(self) -> None:
        self.acceptance_model.check_mean(self.acceptance)
        self.bits()

    def bits(self) -> Payload:
        """By the payload's name or as given."""
        if self.payload is None or self.vocabulary_size is None:
            return Payload(self.bits_per_token or 0.0, self.bits_per_draft)
        return payload(self.payload, self.vocabulary_size)


class CellFile(Section, frozen=True):
    cell: CellSection
    server: ServerSection
    device: list[DeviceSection]
    objective: ObjectiveSection = ObjectiveSection()
