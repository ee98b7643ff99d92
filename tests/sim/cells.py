"""Cells for tests: from a Problem, or from a few lines of TOML."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from multispin.cell import AcceptanceModel, Cell, Energy, parse_cell
from multispin.control import Problem
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency, MixedRadio
from multispin.radio.fading import Radio
from multispin.radio.link import LinkBudget


def cell_of(problem: Problem, **changes) -> Cell:
    """A cell without fading, energy or anything else that the problem does not say."""
    k = problem.num_devices
    cell = Cell(
        names=tuple(f"device-{i}" for i in range(k)),
        problem=problem,
        radio=steady_radio(problem.uplink, k),
        link=LinkBudget(np.zeros((2, k)), np.zeros((2, k)), np.ones(k)),
        acceptance_models=(AcceptanceModel(),) * k,
        energy=Energy(np.zeros(k), np.zeros(k), np.zeros(k), 0.0, 0.0),
        answer_tokens=np.full(k, 64),
        csi="statistical",
    )
    return replace(cell, **changes)


def steady_radio(uplink, k: int) -> Radio:
    is_noisy, constant, noisy = np.zeros(k, bool), None, None
    match uplink:
        case MixedRadio():
            is_noisy, constant, noisy = uplink.is_noisy, uplink.constant, uplink.noisy
        case BandwidthNoise():
            is_noisy, noisy = np.ones(k, bool), uplink
        case ConstantEfficiency():
            constant = uplink
    return Radio(
        is_noisy=is_noisy,
        efficiency=np.ones(k) if constant is None else constant.bits_per_s_per_hz,
        power_to_noise_hz=np.ones(k) if noisy is None else noisy.power_to_noise_hz,
        rician_k=np.full(k, np.inf),
        coherence_s=np.full(k, np.inf),
        min_rate_bits_per_s=np.zeros(k),
    )


BASE = """
[cell]
bandwidth_hz = 2e6
{cell}
[server]
verify_fixed_s = 0.0227
verify_per_device_s = 0.0127
verify_per_token_s = 0.001
round_trip_s = 0.02
{server}
[objective]
{objective}
[[device]]
name = "phone"
count = 3
draft_s_per_token = 0.020
acceptance = 0.74
bits_per_token = 31744
bits_per_draft = 500
{device}
[device.channel]
{channel}
[[device]]
name = "robot"
draft_s_per_token = 0.005
acceptance = 0.9
bits_per_token = 1000
spectral_efficiency = 3.0
"""


def cell(**parts: str) -> Cell:
    """Three phones on a channel and a robot; ``parts`` are lines for the places in BASE."""
    return parse_cell(text(**parts))


def text(**parts: str) -> str:
    defaults = dict.fromkeys(("cell", "server", "objective", "device"), "")
    return BASE.format(**{**defaults, "channel": "snr_db = 15", **parts})
