"""Path loss, line of sight and shadowing of 3GPP TR 38.901 V17.0.0 (2022-03).

Tables 7.4.1-1 (path loss, shadowing) and 7.4.2-1 (probability of a line of sight) for three
scenarios: ``uma`` urban macro, ``umi`` urban micro in a street canyon, ``indoor`` InH office (open
office as to the line of sight). All lengths in metres, the carrier in hertz, losses in decibels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput

Floats = npt.NDArray[np.float64]
ScenarioName = Literal["uma", "umi", "indoor"]

SPEED_OF_LIGHT_M_PER_S = 3.0e8  # as TR 38.901 rounds it
CARRIERS_HZ = (0.5e9, 100e9)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where device and base station are; arrays of one shape, or numbers."""

    distance_m: Floats  # on the ground, d_2D
    carrier_hz: Floats
    base_station_height_m: Floats
    device_height_m: Floats

    @property
    def log_ghz(self) -> Floats:
        return np.log10(self.carrier_hz / 1e9)

    @property
    def log_distance(self) -> Floats:
        """log10 of d_3D, the distance between the antennas."""
        return np.log10(np.hypot(self.distance_m, self.height_difference_m))

    @property
    def height_difference_m(self) -> Floats:
        return np.asarray(self.base_station_height_m - self.device_height_m)

    @property
    def breakpoint_m(self) -> Floats:
        """d'_BP = 4 h'_BS h'_UT f/c with heights over an environment of 1 m."""
        heights = (self.base_station_height_m - 1.0) * (self.device_height_m - 1.0)
        return np.asarray(4.0 * heights * self.carrier_hz / SPEED_OF_LIGHT_M_PER_S)


LossFunction = Callable[[Geometry], Floats]


@dataclass(frozen=True)
class Scenario:
    """One column of the tables: defaults, ranges of validity and formulas."""

    base_station_height_m: float
    device_height_m: float
    base_station_heights_m: tuple[float, float]
    device_heights_m: tuple[float, float]
    distances_m: tuple[float, float]
    los_shadowing_db: float
    nlos_shadowing_db: float
    los_loss_db: LossFunction
    nlos_only_db: LossFunction  # the loss is never below that with a line of sight
    los_probability: Callable[[Floats], Floats]

    def nlos_loss_db(self, geometry: Geometry) -> Floats:
        return np.maximum(self.los_loss_db(geometry), self.nlos_only_db(geometry))

    def check(self, geometry: Geometry) -> None:
        """Raise BadInput, naming the key of CELL.toml, outside the ranges of validity."""
        for name, (low, high) in (
            ("carrier_hz", CARRIERS_HZ),
            ("distance_m", self.distances_m),
            ("base_station_height_m", self.base_station_heights_m),
            ("device_height_m", self.device_heights_m),
        ):
            values = np.atleast_1d(getattr(geometry, name))
            bad = ~((values >= low) & (values <= high))
            if bad.any():
                allowed = f"{low:g}" if low == high else f"between {low:g} and {high:g}"
                remedy = f"must be {allowed}, where TR 38.901 holds"
                raise BadInput(name, float(values[bad][0]), remedy)


def _two_slopes(intercept: float, slope: float, bend: float) -> LossFunction:
    """PL1 before the breakpoint, PL2 (40 dB per decade) behind it."""

    def loss_db(geometry: Geometry) -> Floats:
        log_d, carrier = geometry.log_distance, 20.0 * geometry.log_ghz
        bent = np.log10(geometry.breakpoint_m**2 + geometry.height_difference_m**2)
        near = intercept + slope * log_d + carrier
        far = intercept + 40.0 * log_d + carrier - bend * bent
        return np.where(geometry.distance_m <= geometry.breakpoint_m, near, far)

    return loss_db


def _uma_nlos(geometry: Geometry) -> Floats:
    height = 0.6 * (geometry.device_height_m - 1.5)
    return 13.54 + 39.08 * geometry.log_distance + 20.0 * geometry.log_ghz - height


def _umi_nlos(geometry: Geometry) -> Floats:
    height = 0.3 * (geometry.device_height_m - 1.5)
    return 22.4 + 35.3 * geometry.log_distance + 21.3 * geometry.log_ghz - height


def _indoor_los(geometry: Geometry) -> Floats:
    return 32.4 + 17.3 * geometry.log_distance + 20.0 * geometry.log_ghz


def _indoor_nlos(geometry: Geometry) -> Floats:
    return 17.3 + 38.3 * geometry.log_distance + 24.9 * geometry.log_ghz


def _street_los_probability(decay_m: float) -> Callable[[Floats], Floats]:
    """18/d + exp(-d/decay)(1 - 18/d) beyond 18 m."""

    def probability(distance_m: Floats) -> Floats:
        near = 18.0 / np.maximum(distance_m, 18.0)
        return np.asarray(near + np.exp(-distance_m / decay_m) * (1.0 - near))

    return probability


def _open_office_los_probability(distance_m: Floats) -> Floats:
    middle = np.exp(-np.maximum(distance_m - 5.0, 0.0) / 70.8)
    far = 0.54 * np.exp(-(distance_m - 49.0) / 211.7)
    return np.where(distance_m <= 49.0, middle, far)


SCENARIOS: dict[ScenarioName, Scenario] = {
    "uma": Scenario(
        base_station_height_m=25.0,
        device_height_m=1.5,
        base_station_heights_m=(25.0, 25.0),
        device_heights_m=(1.5, 13.0),  # higher up the environment's height is random
        distances_m=(10.0, 5000.0),
        los_shadowing_db=4.0,
        nlos_shadowing_db=6.0,
        los_loss_db=_two_slopes(28.0, 22.0, 9.0),
        nlos_only_db=_uma_nlos,
        los_probability=_street_los_probability(63.0),
    ),
    "umi": Scenario(
        base_station_height_m=10.0,
        device_height_m=1.5,
        base_station_heights_m=(10.0, 10.0),
        device_heights_m=(1.5, 22.5),
        distances_m=(10.0, 5000.0),
        los_shadowing_db=4.0,
        nlos_shadowing_db=7.82,
        los_loss_db=_two_slopes(32.4, 21.0, 9.5),
        nlos_only_db=_umi_nlos,
        los_probability=_street_los_probability(36.0),
    ),
    "indoor": Scenario(
        base_station_height_m=3.0,
        device_height_m=1.0,
        base_station_heights_m=(1.0, 20.0),
        device_heights_m=(0.5, 20.0),
        distances_m=(1.0, 150.0),  # TR: of d_3D
        los_shadowing_db=3.0,
        nlos_shadowing_db=8.03,
        los_loss_db=_indoor_los,
        nlos_only_db=_indoor_nlos,
        los_probability=_open_office_los_probability,
    ),
}
assert set(SCENARIOS) == set(get_args(ScenarioName))
