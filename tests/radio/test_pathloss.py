"""TR 38.901's tables: figures worked out by hand from V17.0.0, and what the formulas imply."""

from __future__ import annotations

import numpy as np
import pytest

from multispin.errors import BadInput
from multispin.radio.pathloss import SCENARIOS, Geometry


def at(name: str, distance_m: float, carrier_hz: float, **heights: float) -> Geometry:
    scenario = SCENARIOS[name]
    return Geometry(
        distance_m=np.asarray(distance_m),
        carrier_hz=np.asarray(carrier_hz),
        base_station_height_m=np.asarray(heights.get("base", scenario.base_station_height_m)),
        device_height_m=np.asarray(heights.get("device", scenario.device_height_m)),
    )


# UMa at 500 m and 2 GHz, for one: d_3D = sqrt(500^2 + 23.5^2) = 500.552, d'_BP = 4 24 0.5 2e9/3e8 =
# 320, so PL2 = 28 + 40 log10(500.552) + 20 log10(2) - 9 log10(320^2 + 23.5^2)
#             = 28 + 107.97796 + 6.02060 - 45.11372
@pytest.mark.parametrize(
    ("name", "distance_m", "carrier_hz", "los_db", "nlos_db"),
    [
        ("uma", 100, 2e9, 78.27739, 98.17674),
        ("uma", 500, 2e9, 96.88484, 125.05507),
        ("umi", 50, 3.5e9, 79.08966, 94.18069),
        ("umi", 400, 3.5e9, 103.23876, 125.84483),
        ("indoor", 20, 3.7e9, 66.30924, 81.36044),
    ],
)
def test_losses_by_hand(name, distance_m, carrier_hz, los_db, nlos_db):
    geometry = at(name, distance_m, carrier_hz)
    assert SCENARIOS[name].los_loss_db(geometry) == pytest.approx(los_db, abs=1e-4)
    assert SCENARIOS[name].nlos_loss_db(geometry) == pytest.approx(nlos_db, abs=1e-4)


def test_shadowing_of_the_table():
    found = {name: (s.los_shadowing_db, s.nlos_shadowing_db) for name, s in SCENARIOS.items()}
    assert found == {"uma": (4, 6), "umi": (4, 7.82), "indoor": (3, 8.03)}


def test_a_device_higher_up_loses_less():
    """0.6 dB for each metre without a line of sight in UMa, 0.3 in UMi, beside the distance."""
    for name, per_metre in (("uma", 0.6), ("umi", 0.3)):
        low, high = at(name, 2000, 2e9), at(name, 2000, 2e9, device=6.5)
        gain_db = SCENARIOS[name].nlos_loss_db(low) - SCENARIOS[name].nlos_loss_db(high)
        assert gain_db == pytest.approx(5 * per_metre, abs=0.01)


@pytest.mark.parametrize(
    ("name", "distance_m", "probability"),
    [
        ("uma", 10, 1.0),
        ("uma", 18, 1.0),
        ("uma", 100, 0.347671),  # 0.18 + 0.82 exp(-100/63)
        ("umi", 100, 0.230985),  # 0.18 + 0.82 exp(-100/36)
        ("indoor", 5, 1.0),
        ("indoor", 20, 0.809075),  # exp(-15/70.8)
        ("indoor", 100, 0.424394),  # 0.54 exp(-51/211.7)
    ],
)
def test_line_of_sight_by_hand(name, distance_m, probability):
    found = SCENARIOS[name].los_probability(np.asarray(float(distance_m)))
    assert found == pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize("name", ["uma", "umi"])
@pytest.mark.parametrize("carrier_hz", [0.8e9, 3.5e9, 28e9])
def test_both_slopes_meet_at_the_breakpoint(name, carrier_hz):
    breakpoint_m = float(at(name, 1.0, carrier_hz).breakpoint_m)
    before, behind = (
        SCENARIOS[name].los_loss_db(at(name, breakpoint_m * x, carrier_hz))
        for x in (1 - 1e-9, 1 + 1e-9)
    )
    assert before == pytest.approx(float(behind), abs=1e-6)


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_distance_does(name):
    scenario = SCENARIOS[name]
    low, high = scenario.distances_m
    distance = np.geomspace(low, high, 400)
    fixed = at(name, low, 3.5e9)
    geometry = Geometry(
        distance, fixed.carrier_hz, fixed.base_station_height_m, fixed.device_height_m
    )
    los, nlos = scenario.los_loss_db(geometry), scenario.nlos_loss_db(geometry)
    assert (np.diff(los) > 0).all() and (np.diff(nlos) > 0).all()
    assert (nlos >= los).all()
    probability = scenario.los_probability(distance)
    assert (np.diff(probability) <= 0.003).all()  # the table's own step at 49 m
    assert probability.max() == 1.0 and probability.min() > 0


@pytest.mark.parametrize(
    ("name", "geometry", "field"),
    [
        ("uma", {"distance_m": 9.9}, "distance_m"),
        ("uma", {"distance_m": 5001}, "distance_m"),
        ("indoor", {"distance_m": 151}, "distance_m"),
        ("umi", {"carrier_hz": 0.4e9}, "carrier_hz"),
        ("umi", {"carrier_hz": 101e9}, "carrier_hz"),
        ("uma", {"base": 30}, "base_station_height_m"),
        ("umi", {"base": 25}, "base_station_height_m"),
        ("uma", {"device": 13.1}, "device_height_m"),
        ("umi", {"device": 1.4}, "device_height_m"),
        ("umi", {"device": np.nan}, "device_height_m"),
    ],
)
def test_outside_the_tables_range(name, geometry, field):
    with pytest.raises(BadInput, match=f"{field} = .*TR 38.901"):
        SCENARIOS[name].check(at(name, **{"distance_m": 50, "carrier_hz": 2e9, **geometry}))
    SCENARIOS[name].check(at(name, 50, 2e9))
