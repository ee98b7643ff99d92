"""Random cells, wide on purpose: devices, servers and radios that no engineer would combine."""

from __future__ import annotations

import numpy as np

from multispin.control import Objective, Problem, Uplink
from multispin.radio.channel import BandwidthNoise, ConstantEfficiency, MixedRadio
from multispin.radio.units import spectral_efficiency


def log_uniform(rng, low, high, size=None):
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def random_cell(rng, num_devices, max_draft_length=10, objective=None) -> Problem:
    k = num_devices
    bandwidth = float(log_uniform(rng, 1e5, 3e7))
    draft_s = (
        log_uniform(rng, 0.002, 0.1, k) if rng.random() < 0.5 else rng.uniform(0.017, 0.023, k)
    )
    if rng.random() < 0.1:
        draft_s[rng.integers(k)] = 0.0
    if rng.random() < 0.05:
        draft_s[:] = 0.0
    bits = np.full(k, rng.choice([18.0, 1000.0, 31744.0, 31744.0, 0.0]))
    if rng.random() < 0.3:
        bits = log_uniform(rng, 10, 1e5, k)
    if rng.random() < 0.1:
        bits[rng.integers(k)] = 0.0
    header = np.zeros(k)
    if rng.random() < 0.5:
        header = log_uniform(rng, 10, 3e5, k) if rng.random() < 0.5 else np.full(k, 2e3)
    acceptance = rng.beta(rng.choice([0.5, 2, 5]), rng.choice([0.3, 1, 2]), k)
    if rng.random() < 0.1:
        acceptance[rng.integers(k)] = rng.choice([0.0, 1.0])
    return Problem(
        draft_s_per_token=draft_s,
        acceptance=np.clip(acceptance, 0, 1),
        bits_per_token=bits,
        bits_per_draft=header,
        uplink=random_uplink(rng, k, bandwidth),
        bandwidth_hz=bandwidth,
        verify_fixed_s=float(log_uniform(rng, 0.001, 1.0)),
        verify_per_device_s=float(rng.choice([0, 0.0127, 0.002])),
        verify_per_token_s=float(rng.choice([0, 0, 0.0005, 0.005, 0.02])),
        round_trip_s=float(rng.choice([0, 0, 0.01, 0.1])),
        min_draft_length=int(rng.choice([0, 0, 0, 1, 2])),
        max_draft_length=max_draft_length,
        objective=objective or Objective(),
    )


def random_uplink(rng, num_devices, bandwidth) -> Uplink:
    constant = ConstantEfficiency(rng.uniform(0.3, 10, num_devices))
    snr_at_equal_share = log_uniform(rng, 0.3, 30, num_devices)
    noisy = BandwidthNoise(bandwidth / num_devices * snr_at_equal_share)
    kind = rng.random()
    if kind < 0.6:
        return constant
    if kind < 0.9:
        return noisy
    return MixedRadio(rng.random(num_devices) < 0.5, constant, noisy)


# verification (s), bits per token, acceptance mean and deviation by task: multi-spin.md
PAIRS = {
    "llama": (0.02268, 0.01272, 31744.0, ((0.858, 0.247), (0.739, 0.313), (0.713, 0.333))),
    "qwen": (0.07507, 0.01978, 34816.0, ((0.810, 0.341), (0.934, 0.209), (0.965, 0.154))),
}


def paper_cell(rng, num_devices=20, bandwidth=10e6, pair="llama", noisy=False) -> Problem:
    """As multi-spin.md describes the paper's cells; 20 ms and 20 dB are our guess, not printed."""
    fixed, per_device, bits, tasks = PAIRS[pair]
    mean, deviation = np.array(tasks)[rng.integers(0, len(tasks), num_devices)].T
    snr = 100.0 * rng.uniform(0.2, 0.5, num_devices) / 0.35 * rng.exponential(1.0, num_devices)
    return Problem(
        draft_s_per_token=0.020 * rng.uniform(0.85, 1.15, num_devices),
        acceptance=np.clip(rng.normal(mean, deviation), 0.01, 0.99),
        bits_per_token=np.full(num_devices, bits),
        bits_per_draft=np.zeros(num_devices),
        uplink=(
            BandwidthNoise(bandwidth / num_devices * snr)
            if noisy
            else ConstantEfficiency(spectral_efficiency(snr))
        ),
        bandwidth_hz=bandwidth,
        verify_fixed_s=fixed,
        verify_per_device_s=per_device,
    )
