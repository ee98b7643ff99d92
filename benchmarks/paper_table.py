"""The paper's comparison of policies, on cells drawn as arXiv 2606.04581 describes them.

K devices, 1024 probabilities a token, mean channel gain U(0.2, 0.5) with Rayleigh fading, device
speed within 15 % of a mean, acceptance by prompt around each task's mean. Not printed in the
paper, hence ours: 20 ms a drafted token, 20 dB mean SNR, a clipped normal law for acceptance, one
task per device. Averages over draws of channel, speed and prompt; gains are ratios of averages.
Last line: one JSON object.

    python benchmarks/paper_table.py [--draws 50]
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from multispin.control import Problem, solve
from multispin.radio.channel import ConstantEfficiency
from multispin.radio.units import db_to_linear, spectral_efficiency

DRAFT_S = 0.020
MEAN_SNR_DB = 20.0
POLICIES = ("server-only", "fixed", "homogeneous", "length-only", "heterogeneous")
PAIRS = {
    # verification fit (s), bits per token, acceptance mean and deviation by task
    "llama": (
        (0.02268, 0.01272),
        31744.0,
        ((0.858, 0.247), (0.739, 0.313), (0.739, 0.313), (0.713, 0.333)),
    ),
    "qwen": (
        (0.07507, 0.01978),
        34816.0,
        ((0.810, 0.341), (0.934, 0.209), (0.932, 0.223), (0.965, 0.154)),
    ),
}
SWEEP = [(20, b * 1e6) for b in (5, 10, 15, 20)] + [(k, 10e6) for k in (10, 14, 18, 24)]


def draw_cell(rng: np.random.Generator, pair: str, num_devices: int, bandwidth: float) -> Problem:
    (fixed, per_device), bits, tasks = PAIRS[pair]
    mean, deviation = np.array(tasks)[rng.integers(0, 4, num_devices)].T
    gain = rng.uniform(0.2, 0.5, num_devices) / 0.35 * rng.exponential(1.0, num_devices)
    return Problem(
        draft_s_per_token=DRAFT_S * rng.uniform(0.85, 1.15, num_devices),
        acceptance=np.clip(rng.normal(mean, deviation), 0.01, 0.99),
        bits_per_token=np.full(num_devices, bits),
        bits_per_draft=np.zeros(num_devices),
        uplink=ConstantEfficiency(spectral_efficiency(db_to_linear(MEAN_SNR_DB) * gain)),
        bandwidth_hz=bandwidth,
        verify_fixed_s=fixed,
        verify_per_device_s=per_device,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=50)
    draws = parser.parse_args().draws
    print("| pair | K | MHz | " + " | ".join(POLICIES) + " | over fixed | length-only above |")
    print("|---" * (len(POLICIES) + 5) + "|")
    rows = []
    for pair in PAIRS:
        for num_devices, bandwidth in SWEEP:
            goodput = np.empty((draws, len(POLICIES)))
            for draw in range(draws):
                cell = draw_cell(np.random.default_rng(draw), pair, num_devices, bandwidth)
                goodput[draw] = [solve(cell, name).goodput_tokens_per_s for name in POLICIES]
            _, fixed, common, lengths, both = goodput.T
            ordered = (both >= lengths * (1 - 1e-12)) & (common >= fixed * (1 - 1e-12))
            mean = goodput.mean(axis=0)
            row = {
                "pair": pair,
                "devices": num_devices,
                "bandwidth_hz": bandwidth,
                **dict(zip(POLICIES, mean.round(2).tolist(), strict=True)),
                "gain_over_fixed": round(float(mean[4] / mean[1] - 1), 4),
                "length_only_above_homogeneous": float((lengths > common).mean()),
                "ordered": bool(ordered.all()),
            }
            rows.append(row)
            cells = " | ".join(f"{value:.1f}" for value in mean)
            print(
                f"| {pair} | {num_devices} | {bandwidth / 1e6:g} | {cells} | "
                f"{100 * row['gain_over_fixed']:+.0f} % | "
                f"{100 * row['length_only_above_homogeneous']:.0f} % |",
                flush=True,
            )
    print(json.dumps({"benchmark": "paper_table", "draws": draws, "rows": rows}))


if __name__ == "__main__":
    main()
