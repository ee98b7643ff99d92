"""The sections of a CELL.toml as arrays over devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec.structs import asdict, replace

from multispin.cell.cell import Cell, Energy
from multispin.cell.sections import (
    MAX_DEVICES,
    AcceptanceModel,
    CellFile,
    ChannelSection,
    DeviceSection,
)
from multispin.control.problem import Objective, Problem
from multispin.errors import BadInput
from multispin.radio.fading import Radio
from multispin.radio.gains import coherence_s
from multispin.radio.link import LinkBudget
from multispin.radio.pathloss import SCENARIOS
from multispin.radio.units import db_to_linear, spectral_efficiency

Floats = npt.NDArray[np.float64]
_NO_CHANNEL = ChannelSection()


def build(file: CellFile, folder: Path) -> Cell:
    """The cell of a file in ``folder``. Raises BadInput for what only a whole cell gets wrong."""
    counts = [device.count for device in file.device]
    if sum(counts) > MAX_DEVICES:
        raise BadInput("device", sum(counts), f"must be at most {MAX_DEVICES} in all")

    def column(value: Callable[[DeviceSection], float]) -> Floats:
        return np.repeat(np.array([value(device) for device in file.device], np.float64), counts)

    def channel(value: Callable[[ChannelSection], float]) -> Floats:
        return column(lambda device: value(device.channel or _NO_CHANNEL))

    medians = np.array([_power_to_noise_db(device.channel) for device in file.device])
    spreads = np.array([_shadowing_db(device.channel) for device in file.device])
    link = LinkBudget(
        power_to_noise_db=np.repeat(medians.T, counts, axis=1),
        shadowing_db=np.repeat(spreads.T, counts, axis=1),
        los_probability=channel(_los_probability),
    )
    radio = Radio(
        is_noisy=column(_is_noisy) > 0,
        efficiency=column(_efficiency),
        power_to_noise_hz=db_to_linear(link.mean_db()),
        rician_k=channel(_rician_k),
        coherence_s=channel(_coherence_s),
        min_rate_bits_per_s=channel(lambda section: section.min_rate_bits_per_s),
    )
    server = asdict(file.server)
    energy, _ = server.pop("energy"), server.pop("curve")
    return Cell(
        names=_names(file.device),
        problem=Problem(
            draft_s_per_token=column(lambda device: device.draft_s_per_token),
            acceptance=column(lambda device: device.acceptance),
            bits_per_token=column(lambda device: device.bits().bits_per_token),
            bits_per_draft=column(lambda device: device.bits().bits_per_draft),
            uplink=radio.mean_uplink(file.cell.bandwidth_hz),
            bandwidth_hz=file.cell.bandwidth_hz,
            objective=Objective(
                file.objective.kind,
                file.objective.min_goodput_tokens_per_s,
                file.objective.outage(),
            ),
            **server,
        ),
        radio=radio,
        link=link,
        acceptance_models=tuple(
            model
            for device in file.device
            for model in [_resolved(device.acceptance_model, folder)] * device.count
        ),
        energy=Energy(
            draft_w=column(lambda device: device.energy.draft_w),
            transmit_w=column(lambda device: device.energy.transmit_w),
            idle_w=column(lambda device: device.energy.idle_w),
            server_busy_w=energy.busy_w,
            server_idle_w=energy.idle_w,
        ),
        answer_tokens=column(lambda device: device.answer_tokens).astype(np.int64),
        csi=file.cell.csi,
        curve=file.server.curve,
    )


def _names(devices: list[DeviceSection]) -> tuple[str, ...]:
    """A name for each device, with a number where a table stands for several."""
    names: dict[str, None] = {}
    for device in devices:
        numbers = [""] if device.count == 1 else [f"-{i}" for i in range(1, device.count + 1)]
        for number in numbers:
            name = f"{device.name}{number}"
            if name in names:
                raise BadInput("device.name", repr(name), "is used twice; names are unique")
            names[name] = None
    return tuple(names)


def _resolved(model: AcceptanceModel, folder: Path) -> AcceptanceModel:
    return model if model.record is None else replace(model, record=str(folder / model.record))


def _is_noisy(device: DeviceSection) -> bool:
    return device.channel is not None and device.channel.snr_db is None


def _efficiency(device: DeviceSection) -> float:
    if device.spectral_efficiency is not None:
        return device.spectral_efficiency
    snr_db = device.channel.snr_db if device.channel else None
    return 1.0 if snr_db is None else float(spectral_efficiency(db_to_linear(snr_db)))


def _power_to_noise_db(channel: ChannelSection | None) -> tuple[float, float]:
    """Median S/N0 in dB Hz with and without a line of sight; 0 where it does not count."""
    if channel is None:
        return 0.0, 0.0
    noise = channel.noise_density_dbm_per_hz + channel.noise_figure_db
    if channel.received_power_dbm is not None:
        return channel.received_power_dbm - noise, channel.received_power_dbm - noise
    if channel.model is None or channel.transmit_power_dbm is None:
        return 0.0, 0.0
    scenario, geometry = SCENARIOS[channel.model], channel.geometry(channel.model)
    power = channel.transmit_power_dbm + channel.antenna_gain_db - noise
    return (
        power - float(scenario.los_loss_db(geometry)),
        power - float(scenario.nlos_loss_db(geometry)),
    )


def _shadowing_db(channel: ChannelSection | None) -> tuple[float, float]:
    """Standard deviation with and without a line of sight."""
    if channel is None or channel.model is None:
        return 0.0, 0.0
    scenario = SCENARIOS[channel.model]
    if channel.shadowing_db is not None:
        return channel.shadowing_db, channel.shadowing_db
    return scenario.los_shadowing_db, scenario.nlos_shadowing_db


def _los_probability(channel: ChannelSection) -> float:
    if channel.model is None or channel.los == "line-of-sight":
        return 1.0
    if channel.los == "none":
        return 0.0
    geometry = channel.geometry(channel.model)
    return float(SCENARIOS[channel.model].los_probability(geometry.distance_m))


def _rician_k(channel: ChannelSection) -> float:
    if channel.fading == "none":
        return np.inf
    return 0.0 if channel.rician_k_db is None else float(db_to_linear(channel.rician_k_db))


def _coherence_s(channel: ChannelSection) -> float:
    if channel.coherence_s is not None:
        return channel.coherence_s
    if channel.speed_m_per_s is None or channel.carrier_hz is None or channel.fading == "none":
        return np.inf
    return coherence_s(channel.speed_m_per_s, channel.carrier_hz)
